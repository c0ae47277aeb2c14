//! The TOML file: the server's own settings, the options of all queues, those of single queues, and aliases.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kestrel_core::{QueueOptions, QueueOverrides, WhenFull};
use serde::Deserialize;
use toml::{Table, Value};

/// What is said where the file says nothing, and what each setting means.
const SETTINGS: &str = include_str!("../settings.toml");

/// The settings by their names in the file.
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
        let (mut all, mut file) = (table(SETTINGS)?, table(text)?);
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
                let mut options = defaults.clone();
                options.extend(own.clone());
                options.retain(|_, value| !matches!(value.as_str(), Some("none" | "")));
                value_max = value_max.max(check(&format!("queues.{name}"), options)?);
            }
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

    /// The file once more.
    pub(crate) fn reread(&self) -> Result<Config, String> {
        self.path.as_deref().map_or_else(|| Ok(self.clone()), Config::read)
    }

    /// Half of the cores: the clients, the device and the set's own thread want the rest.
    pub(crate) fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        if self.threads == 0 { (cores / 2).max(1) } else { self.threads }
    }

    /// How long a connection may say nothing, if that is bounded.
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
