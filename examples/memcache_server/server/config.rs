//! The TOML file: the server's own settings, the options of all queues, those of single queues, and aliases.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kestrel_core::{QueueOptions, QueueOverrides, WhenFull};
use serde::Deserialize;
use toml::{Table, Value};

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
    pub(crate) defaults: QueueOptions,
    /// Options of single queues, over the defaults.
    pub(crate) queues: BTreeMap<String, QueueOverrides>,
    /// Names that put to several queues.
    pub(crate) aliases: BTreeMap<String, Vec<String>>,
    /// The largest item that any queue takes.
    #[serde(skip)]
    pub(crate) value_max: usize,
    /// Where this was read from, for `reload`.
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let defaults = QueueOptions::default();
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
            value_max: defaults.max_item_size as usize,
            defaults,
            queues: BTreeMap::new(),
            aliases: BTreeMap::new(),
            path: None,
        }
    }
}

impl Config {
    /// Reads settings; options that no queue can have are an error.
    pub(crate) fn parse(text: &str) -> Result<Config, String> {
        let mut file: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
        let mut defaults = Table::new();
        if let Some(Value::Table(options)) = file.get_mut("defaults") {
            in_the_words_of_the_library(options);
            // Here it is the same as not to say it.
            options.retain(|_, value| value.as_str() != Some("none"));
            defaults.clone_from(options);
        }
        let mut value_max = check("defaults", defaults.clone())?;
        if let Some(Value::Table(queues)) = file.get_mut("queues") {
            for (name, own) in queues.iter_mut().filter_map(|(name, own)| Some((name, own.as_table_mut()?))) {
                in_the_words_of_the_library(own);
                let mut all = defaults.clone();
                all.extend(own.clone());
                all.retain(|_, value| !matches!(value.as_str(), Some("none" | "")));
                value_max = value_max.max(check(&format!("queues.{name}"), all)?);
            }
        }
        let config: Config = file.try_into().map_err(|error| error.to_string())?;
        Ok(Config { value_max, ..config })
    }

    pub(crate) fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config = Config::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Config { path: Some(path.to_owned()), ..config })
    }

    /// The file once more.
    pub(crate) fn reread(&self) -> Result<Config, String> {
        self.path.as_deref().map_or_else(|| Ok(self.clone()), Config::read)
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

/// The file's words for options are the library's, but for times in ms, `drop_oldest`, and small letters.
fn in_the_words_of_the_library(options: &mut Table) {
    let table = |pairs: &[(&str, Value)]| -> Value {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Table>().into()
    };
    let span = |ms: i64| table(&[("secs", (ms / 1000).into()), ("nanos", (ms % 1000 * 1_000_000).into())]);
    let said = std::mem::take(options);
    for (name, value) in said {
        let (name, value) = match (name.as_str(), name.strip_suffix("_ms"), value) {
            // 0 takes away a limit of time that the defaults set.
            (_, Some(name), Value::Integer(0)) => (name.to_owned(), "none".into()),
            (_, Some(name), Value::Integer(ms)) => (name.to_owned(), span(ms)),
            ("drop_oldest", _, Value::Boolean(drop)) => {
                ("when_full".to_owned(), if drop { "DropOldest" } else { "Refuse" }.into())
            }
            ("durability", _, Value::Integer(ms)) => (name, table(&[("Every", span(ms))])),
            ("durability", _, Value::String(word)) if word == "sync" => (name, "Sync".into()),
            ("durability", _, Value::String(word)) if word == "os" => (name, "Os".into()),
            (_, _, value) => (name, value),
        };
        options.insert(name, value);
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

/// The options as `dump_config` shows them, times in ms as in the file.
pub(crate) fn shown(options: &QueueOptions) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(options)) = serde_json::to_value(options) else {
        return Vec::new();
    };
    let shown = |(name, value): (String, serde_json::Value)| match (value["secs"].as_u64(), value["nanos"].as_u64()) {
        (Some(secs), Some(nanos)) => (name + "_ms", (secs * 1000 + nanos / 1_000_000).to_string()),
        _ if value.is_null() => (name, "none".to_owned()),
        _ => (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
    };
    options.into_iter().map(shown).collect()
}
