//! The TOML file: the server's own settings, the options of all queues, those of single queues, and aliases.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kestrel_core::{QueueOptions, QueueOverrides, WhenFull};
use serde::Deserialize;
use toml::{Table, Value};

/// What is said where the file says nothing, and what each setting means.
const SETTINGS: &str = include_str!("../settings.toml");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) max_connections: usize,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) max_open_reads: usize,
    pub(crate) bare_keys: bool,
    pub(crate) kestrel_flush_all: bool,
    pub(crate) max_disk_bytes: Option<u64>,
    threads: usize,
    pub(crate) defaults: QueueOptions,
    pub(crate) queues: BTreeMap<String, QueueOverrides>,
    pub(crate) aliases: BTreeMap<String, Vec<String>>,
    /// The largest item that any queue takes.
    #[serde(skip)]
    pub(crate) value_max: usize,
    /// Where this was read from, for `reload`.
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl Config {
    /// Reads settings; options that no queue can have are an error.
    pub(crate) fn parse(text: &str) -> Result<Config, String> {
        let table = |text: &str| text.parse::<Table>().map_err(|error| error.to_string());
        let (mut all, file) = (table(SETTINGS)?, table(text)?);
        let part = |name| file.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
        let defaults = part("defaults");
        let mut value_max = check("defaults", defaults.clone())?;
        for (name, own) in part("queues") {
            let mut options = defaults.clone();
            options.extend(own.as_table().cloned().unwrap_or_default());
            value_max = value_max.max(check(&format!("queues.{name}"), options)?);
        }
        all.extend(file);
        let config: Config = all.try_into().map_err(|error| error.to_string())?;
        Ok(Config { value_max, ..config })
    }

    pub(crate) fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config = Config::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Config { path: Some(path.to_owned()), ..config })
    }

    pub(crate) fn reread(&self) -> Result<Config, String> {
        self.path.as_deref().map_or_else(|| Ok(self.clone()), Config::read)
    }

    /// Half of the cores: the clients, the device and the set's own thread want the rest.
    pub(crate) fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        if self.threads == 0 { (cores / 2).max(1) } else { self.threads }
    }
}

/// The largest item under these options, if they are right.
fn check(place: &str, options: Table) -> Result<usize, String> {
    let told = |error: &dyn std::fmt::Display| format!("{place}: {error}");
    let options: QueueOptions = options.try_into().map_err(|error: toml::de::Error| told(&error))?;
    options.check().map_err(|error| told(&error))?;
    if options.when_full == WhenFull::Wait {
        return Err(told(&"a put that waits for room would be taken for a dead server"));
    }
    Ok(options.max_item_size as usize)
}

/// The options as `dump_config` shows them, in the words of the file.
pub(crate) fn shown(options: &QueueOptions) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(options)) = serde_json::to_value(options) else {
        return Vec::new();
    };
    let shown = |value: serde_json::Value| match value.as_str() {
        Some("") => "none".to_owned(),
        Some(word) => word.to_owned(),
        None => value.to_string(),
    };
    options.into_iter().map(|(name, value)| (name, shown(value))).collect()
}
