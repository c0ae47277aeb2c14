//! A server that speaks Kestrel's dialect of the memcache text protocol, over the queues of one directory.
//!
//! ```sh
//! cargo run --release --example memcache_server -- --data DIR --listen 127.0.0.1:22133
//! ```
//!
//! `README.md` beside this file has the commands and the settings. SIGTERM and SIGINT stop it in good order: replies on their
//! way are written, open reads go back to their queues. SIGHUP reads the file of settings again.

mod server;

use std::path::Path;
use std::process::ExitCode;

use server::{AnyError, Config, Running};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "memcache_server [--config FILE] [--data DIR] [--listen ADDRESS:PORT] [--metrics ADDRESS:PORT]";

fn main() -> ExitCode {
    match configure().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memcache_server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the file says, and over it what the arguments say.
fn configure() -> Result<Config, AnyError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pairs: Vec<(&str, &str)> = args.chunks(2).map(|pair| (&*pair[0], pair.get(1).map_or("", |v| v))).collect();
    let mut config = match pairs.iter().find(|(name, _)| *name == "--config") {
        Some((_, path)) => Config::read(Path::new(path))?,
        None => Config::parse("")?,
    };
    for (name, value) in pairs {
        match name {
            "--config" => {}
            "--data" if !value.is_empty() => config.data = value.into(),
            "--listen" => config.listen = value.parse()?,
            "--metrics" => config.metrics = Some(value.parse()?),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(config)
}

fn run(config: Config) -> Result<(), AnyError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(config.threads()).enable_all().build()?;
    runtime.block_on(async {
        // On a thread of the runtime, which may block for a moment; this one may not.
        let running = tokio::spawn(Running::start(config)).await??;
        println!("listening on {}", running.address);
        if let Some(address) = running.metrics {
            println!("metrics on http://{address}/metrics");
        }
        for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
            let (mut signals, server) = (signal(kind)?, running.server.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if kind != SignalKind::hangup() {
                        server.stop();
                    } else if let Err(error) = server.reload() {
                        eprintln!("memcache_server: {error}");
                    }
                }
            });
        }
        tokio::spawn(running.finish()).await?
    })
}
