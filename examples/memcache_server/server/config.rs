//! The TOML file: the server's own settings, the options of all queues, and those of single queues.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kestrel_core::{Durability, QueueOptions, WhenFull};
use serde::Deserialize;

/// What the file may say; what it does not say has the value of [`Config::default`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The directory of the queues.
    pub(crate) data: PathBuf,
    /// Clients connect here. Loopback unless told otherwise: the protocol knows no passwords.
    pub(crate) listen: SocketAddr,
    /// `/metrics` by HTTP, if wanted.
    pub(crate) metrics: Option<SocketAddr>,
    /// Connections at a time; one more is told so and closed.
    pub(crate) max_connections: usize,
    /// A connection that says nothing for so long is closed; 0: never.
    pub(crate) idle_timeout_ms: u64,
    /// Open reads of one connection on one queue.
    pub(crate) max_open_reads: usize,
    /// Answer with the bare name of the queue, as Kestrel did, instead of the key as it was asked for.
    pub(crate) bare_keys: bool,
    /// Answer `flush_all` in Kestrel's words, instead of memcached's `OK`.
    pub(crate) kestrel_flush_all: bool,
    /// Bytes of segment files over all queues.
    pub(crate) max_disk_bytes: Option<u64>,
    /// Threads that serve connections; 0: half of the cores.
    threads: usize,
    /// Options of all queues.
    defaults: Layer,
    /// Options of single queues, over the defaults.
    queues: BTreeMap<String, Layer>,
    /// Where this was read from, for `reload`.
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data: PathBuf::from("kestrel-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 22133)),
            metrics: None,
            max_connections: 10_000,
            idle_timeout_ms: 0,
            max_open_reads: 1,
            bare_keys: false,
            kestrel_flush_all: false,
            max_disk_bytes: None,
            threads: 0,
            defaults: Layer::default(),
            queues: BTreeMap::new(),
            path: None,
        }
    }
}

/// Options of a queue, as far as they are said. A new option of the library gets a line here, in `over` and in `shown`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    max_items: Option<u64>,
    max_bytes: Option<u64>,
    max_item_size: Option<u32>,
    /// `true`: drop oldest items instead of refusing new ones. That a put waits for room is not offered: a client would
    /// take it for a dead server.
    drop_oldest: Option<bool>,
    max_age_ms: Option<u64>,
    max_expire_sweep: Option<u32>,
    memory_bytes: Option<u64>,
    segment_bytes: Option<u32>,
    durability: Option<Sync>,
    journal: Option<bool>,
    lease_ms: Option<u64>,
    max_attempts: Option<u32>,
    dead_letters: Option<String>,
}

/// `"sync"`, `"os"`, or a period in ms.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Sync {
    Named(SyncName),
    EveryMs(u64),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SyncName {
    Sync,
    Os,
}

impl Layer {
    fn over(&self, mut options: QueueOptions) -> QueueOptions {
        // 0 takes a limit of time away that the defaults set.
        let period = |ms: u64| (ms > 0).then_some(Duration::from_millis(ms));
        options.max_items = self.max_items.or(options.max_items);
        options.max_bytes = self.max_bytes.or(options.max_bytes);
        options.max_item_size = self.max_item_size.unwrap_or(options.max_item_size);
        options.when_full = match self.drop_oldest {
            Some(true) => WhenFull::DropOldest,
            Some(false) => WhenFull::Refuse,
            None => options.when_full,
        };
        options.max_age = self.max_age_ms.map_or(options.max_age, period);
        options.max_expire_sweep = self.max_expire_sweep.unwrap_or(options.max_expire_sweep);
        options.memory_bytes = self.memory_bytes.unwrap_or(options.memory_bytes);
        options.segment_bytes = self.segment_bytes.unwrap_or(options.segment_bytes);
        options.durability = match self.durability {
            Some(Sync::Named(SyncName::Sync)) => Durability::Sync,
            Some(Sync::Named(SyncName::Os)) => Durability::Os,
            Some(Sync::EveryMs(ms)) => Durability::Every(Duration::from_millis(ms)),
            None => options.durability,
        };
        options.journal = self.journal.unwrap_or(options.journal);
        options.lease = self.lease_ms.map_or(options.lease, period);
        options.max_attempts = self.max_attempts.or(options.max_attempts);
        options.dead_letters = self.dead_letters.clone().or(options.dead_letters);
        options
    }
}

impl Config {
    /// Reads settings; options that no queue can have are an error.
    pub(crate) fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.options("").check().map_err(|error| format!("defaults: {error}"))?;
        for name in config.named() {
            config.options(name).check().map_err(|error| format!("queues.{name}: {error}"))?;
        }
        Ok(config)
    }

    pub(crate) fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config = Config::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Config { path: Some(path.to_owned()), ..config })
    }

    /// The file once more. What a running server cannot change (directory, addresses, threads) stays as it was.
    pub(crate) fn reread(&self) -> Result<Config, String> {
        let Some(path) = &self.path else {
            return Ok(self.clone());
        };
        let (data, listen, metrics) = (self.data.clone(), self.listen, self.metrics);
        Ok(Config { data, listen, metrics, threads: self.threads, ..Config::read(path)? })
    }

    /// The options of the queue of this name.
    pub(crate) fn options(&self, name: &str) -> QueueOptions {
        let options = self.defaults.over(QueueOptions::default());
        self.queues.get(name).map_or(options.clone(), |own| own.over(options))
    }

    /// The queues that have options of their own.
    pub(crate) fn named(&self) -> impl Iterator<Item = &str> {
        self.queues.keys().map(String::as_str)
    }

    /// The largest item that any queue takes.
    pub(crate) fn value_max(&self) -> usize {
        let own = self.named().map(|name| self.options(name).max_item_size);
        own.chain([self.options("").max_item_size]).max().unwrap_or_default() as usize
    }

    /// Half of the cores: the clients, the device and the set's own thread want the rest.
    pub(crate) fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        if self.threads == 0 { (cores / 2).max(1) } else { self.threads }
    }

    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        (self.idle_timeout_ms > 0).then(|| Duration::from_millis(self.idle_timeout_ms))
    }
}

/// The options as `dump_config` shows them.
pub(crate) fn shown(options: &QueueOptions) -> Vec<(&'static str, String)> {
    let number = |value: Option<u64>| value.map_or("none".to_owned(), |value| value.to_string());
    let ms = |value: Option<Duration>| value.map_or("none".to_owned(), |value| value.as_millis().to_string());
    vec![
        ("max_items", number(options.max_items)),
        ("max_bytes", number(options.max_bytes)),
        ("max_item_size", options.max_item_size.to_string()),
        ("drop_oldest", (options.when_full == WhenFull::DropOldest).to_string()),
        ("max_age_ms", ms(options.max_age)),
        ("max_expire_sweep", options.max_expire_sweep.to_string()),
        ("memory_bytes", options.memory_bytes.to_string()),
        ("segment_bytes", options.segment_bytes.to_string()),
        (
            "durability",
            match options.durability {
                Durability::Sync => "sync".to_owned(),
                Durability::Os => "os".to_owned(),
                Durability::Every(period) => period.as_millis().to_string(),
            },
        ),
        ("journal", options.journal.to_string()),
        ("lease_ms", ms(options.lease)),
        ("max_attempts", number(options.max_attempts.map(u64::from))),
        ("dead_letters", options.dead_letters.clone().unwrap_or("none".to_owned())),
    ]
}
