//! All options of a queue and of a put, their defaults, their rules, and how a queue's header stores them.

#[cfg(feature = "serde")]
mod form;

use std::time::{Duration, SystemTime};

use crate::error::OptionsError;
use crate::format::Bytes;
use crate::format::frame::PAYLOAD_MAX;
use crate::format::name;
use crate::journal::lane::STARTS_MAX;
use crate::journal::segment::{LEN_MAX, LEN_MIN};

/// The largest payload that a frame holds together with the note of a dead letter.
const ITEM_MAX: u32 = (PAYLOAD_MAX + 1) - 8192;

/// More starts than a lane counts cannot be told from fewer.
const ATTEMPTS_MAX: u32 = STARTS_MAX as u32;

/// When a put is answered, and so what it survives.
///
/// | | `put` answers when the item is | death of the process | power cut |
/// |---|---|---|---|
/// | `Sync` | on the device | kept | kept |
/// | `Every(d)` | in the page cache | kept | all but the last `d` (and one sync) kept |
/// | `Os` | in the page cache | kept | an unbroken beginning is kept, the rest lost |
///
/// A queue without a journal ([`QueueOptions::journal`]) keeps nothing beyond the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// `put` returns once the item is on the device. Concurrent puts share one sync (group commit). A consumer gets such
    /// an item only when it is durable, so nobody acts on an item that a power cut could still unmake.
    #[default]
    Sync,
    /// `put` returns at once; a background thread syncs on this period, beside the puts.
    Every(Duration),
    /// `put` returns at once; the operating system writes when it likes.
    Os,
}

/// What a put does in a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WhenFull {
    /// The put fails with [`PutError::Full`](crate::PutError::Full).
    #[default]
    Refuse,
    /// The oldest waiting items are dropped until there is room, also such as wait for a sync; open items never are.
    DropOldest,
    /// The put waits for room.
    Wait,
}

/// What opening does with a queue whose journal is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OnDamage {
    /// That queue does not open ([`OpenError::Corrupt`](crate::OpenError::Corrupt)); others do. Nothing is changed.
    #[default]
    Refuse,
    /// The damaged range is skipped, and reported with the ids lost.
    Salvage,
}

/// What a set lets its callers do: [`QueueSet::set_state`](crate::QueueSet::set_state).
///
/// | | `put`, `clear`, `delete`, new queues | `get`, `open`, `peek` | `close`, `abort`, `extend` |
/// |---|---|---|---|
/// | `Up` | yes | yes | yes |
/// | `ReadOnly` | no | yes | yes |
/// | `Quiescent` | no | no | yes |
///
/// `close_into` and `dead_letter` store an item, and so are refused like a put; the item stays open. Statistics, options, `sync`
/// and the set's own upkeep (syncs, expiry, ended leases, dead letters) go on in every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum State {
    /// Everything is allowed.
    #[default]
    Up,
    /// Nothing new comes in, nothing is thrown away.
    ReadOnly,
    /// Nothing but the end of what is open.
    Quiescent,
}

impl State {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_code(code: u8) -> Option<State> {
        [State::Up, State::ReadOnly, State::Quiescent].get(usize::from(code)).copied()
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Up => "up",
            State::ReadOnly => "read-only",
            State::Quiescent => "quiescent",
        })
    }
}

/// How a state comes into force: [`QueueSet::set_state_with`](crate::QueueSet::set_state_with).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateOptions {
    pub(crate) grace: Duration,
    pub(crate) persist: bool,
}

impl StateOptions {
    /// At once, and until the set is closed.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stricter state comes into force this long after the call, in steps of a ms; a looser one always at once.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Whether the next open of the set begins in this state. It is stored before the call returns, also where it comes into
    /// force later.
    #[must_use]
    pub fn persist(mut self, persist: bool) -> Self {
        self.persist = persist;
        self
    }
}

/// How a queue behaves: limits, expiry, durability, memory.
///
/// Start from the default and set what differs, by field or by the method of the same name.
///
/// # In a file of settings
///
/// With the feature `serde` they are read from TOML, JSON and their kind, and written to it. A time is a number of milliseconds
/// under a name that says so: `max_age_ms`, `lease_ms`, `max_queue_age_ms`. "No limit" is the word `"none"` or a null, and the
/// empty text where a queue is named. `durability` is `"sync"`, `"os"`, or the period in milliseconds; `when_full` is
/// `"refuse"`, `"drop_oldest"` or `"wait"`. Unknown names are an error; a field that is not named has its default.
///
/// ```
/// # #[cfg(feature = "serde")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// use kestrel_core::{Durability, QueueOptions};
/// let file = "max_age_ms = 60000\nmax_items = \"none\"\ndurability = \"os\"";
/// let options: QueueOptions = toml::from_str(file)?;
/// assert_eq!(options, QueueOptions::default().max_age(Duration::from_secs(60)).durability(Durability::Os));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "serde"))]
/// # fn main() {}
/// ```
///
/// # In code
///
/// ```
/// use kestrel_core::{Durability, QueueOptions, WhenFull};
/// let options = QueueOptions::default().max_items(1000).when_full(WhenFull::DropOldest).durability(Durability::Os);
/// assert_eq!(options.max_items, Some(1000));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct QueueOptions {
    /// Most items waiting; open ones do not count. Expired items are removed before a put is refused or drops one, except
    /// those beyond `memory_bytes`, which count until they are read. Default: no limit.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub max_items: Option<u64>,
    /// Most payload bytes waiting; a put that would exceed it does not happen. Default: no limit.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub max_bytes: Option<u64>,
    /// Largest payload in bytes; at most 256 MiB - 8 KiB. Default: 1 MiB.
    pub max_item_size: u32,
    /// What a put does at a limit. Default: refuse.
    pub when_full: WhenFull,
    /// An item expires this long after its put, if not earlier by its own expiry. Lowering it later affects the items
    /// that wait; raising it does not. Default: never.
    #[cfg_attr(feature = "serde", serde(rename = "max_age_ms", with = "form::limit"))]
    pub max_age: Option<Duration>,
    /// Most expired items that one background round removes. Default: 10,000.
    pub max_expire_sweep: u32,
    /// Payload bytes of waiting items that are held ready; what is beyond is read back from the journal in time.
    /// Default: 128 MiB.
    pub memory_bytes: u64,
    /// Size of a full-grown segment file: a power of two from 64 KiB to 1 GiB. Default: 64 MiB.
    pub segment_bytes: u32,
    /// What a put survives. Default: [`Durability::Sync`].
    pub durability: Durability,
    /// `false`: the queue lives in memory only and is empty after a restart. Default: `true`.
    pub journal: bool,
    /// How long a consumer may hold an item open; then it comes back as by an abort, unless
    /// [`extend`](crate::OpenItem::extend)ed in time. In steps of a ms; affects items opened later. Default: without end.
    #[cfg_attr(feature = "serde", serde(rename = "lease_ms", with = "form::limit"))]
    pub lease: Option<Duration>,
    /// How often an item is started at most, on disk counted up to 31. When the last of these starts ends without a close,
    /// by abort, drop, an ended lease or the death of the process, the item moves to the queue named by `dead_letters`,
    /// which must be set too. Default: no limit.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub max_attempts: Option<u32>,
    /// The queue of the same set that takes items whose `max_attempts` are used up or that are given up by
    /// [`dead_letter`](crate::OpenItem::dead_letter). It is created when first needed. Where the set's defaults name a queue
    /// here, that queue itself has no limit of attempts and no dead letters. Default: none.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub dead_letters: Option<String>,
    /// The queue of the same set that expired items move to, once each also across a crash, in order and without an expiry: its
    /// own `max_age`, counted from the move, may give them one. It is created when first needed, and named anew each time: an
    /// alias, or a queue without a journal where this one has one, takes none. While it takes none, up to 65,536 items are kept
    /// aside and tried again once a second; behind those, an expired item holds up what comes after it. A queue may name itself;
    /// its expired items then go to its end. What moves here is put: all readers of the other queue get it. Each reader moves what
    /// expires for it; one of the queue that is named keeps its own. Default: none, expired items are removed.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub expire_to: Option<String>,
    /// The queue is deleted when it was created longer ago than this and is empty: no item waits, is held open or is about to
    /// move, and nobody waits for one. Its age goes on over a reopen. Looked at once a second, from the time at which the queue
    /// is first used in a process, while the set's state is `Up`; handles of it answer `Closed` then. The same must hold for each of
    /// its readers, which go with it. Default: never.
    #[cfg_attr(feature = "serde", serde(rename = "max_queue_age_ms", with = "form::limit"))]
    pub max_queue_age: Option<Duration>,
    /// `true`: items put go to the queue's [readers](crate::Queue::reader) only. The queue itself gets none and stays empty, but
    /// for what it held before, so its limits refuse nothing; without any reader a put is answered, counted as
    /// [`unread_items`](crate::QueueStats::unread_items), and stored nowhere: its id is 0. Default: `false`.
    pub fanout_only: bool,
    /// 512 or 4096: each sync ends what was put before it at a multiple of so many bytes, so that no sector of the device with a
    /// durable item is ever written again for the sake of a later one. A device that loses power while it writes may spoil the
    /// sector that it is writing; without this, durable items that share it with new ones are lost then, and the next open tells
    /// of it as damage. Costs up to so many bytes, and 24, a sync. Say how large the sectors are that the device writes as a
    /// whole; where those have 4096 bytes, the first page of a segment is written again all the same, once a MiB and when it is
    /// full. States of items stand in sectors of their own: a spoiled one may give items again, or not, as it comes. Default: none.
    #[cfg_attr(feature = "serde", serde(with = "form::limit"))]
    pub pad_to: Option<u32>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions {
            max_items: None,
            max_bytes: None,
            max_item_size: 1 << 20,
            when_full: WhenFull::Refuse,
            max_age: None,
            max_expire_sweep: 10_000,
            memory_bytes: 128 << 20,
            segment_bytes: 64 << 20,
            durability: Durability::Sync,
            journal: true,
            lease: None,
            max_attempts: None,
            dead_letters: None,
            expire_to: None,
            max_queue_age: None,
            fanout_only: false,
            pad_to: None,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $wrap:expr;)*) => {
        impl QueueOptions {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(mut self, value: $type) -> Self {
                self.$name = ($wrap)(value);
                self
            })*
        }
    };
}

setters! {
    /// Sets [`QueueOptions::max_items`](#structfield.max_items).
    max_items: u64 => Some;
    /// Sets [`QueueOptions::max_bytes`](#structfield.max_bytes).
    max_bytes: u64 => Some;
    /// Sets [`QueueOptions::max_item_size`](#structfield.max_item_size).
    max_item_size: u32 => std::convert::identity;
    /// Sets [`QueueOptions::when_full`](#structfield.when_full).
    when_full: WhenFull => std::convert::identity;
    /// Sets [`QueueOptions::max_age`](#structfield.max_age).
    max_age: Duration => Some;
    /// Sets [`QueueOptions::max_expire_sweep`](#structfield.max_expire_sweep).
    max_expire_sweep: u32 => std::convert::identity;
    /// Sets [`QueueOptions::memory_bytes`](#structfield.memory_bytes).
    memory_bytes: u64 => std::convert::identity;
    /// Sets [`QueueOptions::segment_bytes`](#structfield.segment_bytes).
    segment_bytes: u32 => std::convert::identity;
    /// Sets [`QueueOptions::durability`](#structfield.durability).
    durability: Durability => std::convert::identity;
    /// Sets [`QueueOptions::journal`](#structfield.journal).
    journal: bool => std::convert::identity;
    /// Sets [`QueueOptions::lease`](#structfield.lease).
    lease: Duration => Some;
    /// Sets [`QueueOptions::max_attempts`](#structfield.max_attempts).
    max_attempts: u32 => Some;
    /// Sets [`QueueOptions::dead_letters`](#structfield.dead_letters).
    dead_letters: impl Into<String> => |name: _| Some(Into::into(name));
    /// Sets [`QueueOptions::expire_to`](#structfield.expire_to).
    expire_to: impl Into<String> => |name: _| Some(Into::into(name));
    /// Sets [`QueueOptions::max_queue_age`](#structfield.max_queue_age).
    max_queue_age: Duration => Some;
    /// Sets [`QueueOptions::fanout_only`](#structfield.fanout_only).
    fanout_only: bool => std::convert::identity;
    /// Sets [`QueueOptions::pad_to`](#structfield.pad_to).
    pad_to: u32 => Some;
}

impl QueueOptions {
    /// Whether every value is in its range: what opening and [`set_options`](crate::Queue::set_options) check first, for
    /// those who read options from a file.
    ///
    /// # Errors
    /// [`OptionsError::Invalid`] names the first field that is not.
    ///
    /// ```
    /// use kestrel_core::QueueOptions;
    /// assert!(QueueOptions::default().check().is_ok());
    /// assert!(QueueOptions::default().segment_bytes(100_000).check().is_err());
    /// ```
    pub fn check(&self) -> Result<(), OptionsError> {
        let invalid = |field, reason| Err(OptionsError::Invalid { field, reason });
        if self.max_item_size > ITEM_MAX {
            return invalid("max_item_size", "at most 268427264 bytes");
        }
        if !self.segment_bytes.is_power_of_two() || !(LEN_MIN..=LEN_MAX).contains(&self.segment_bytes) {
            return invalid("segment_bytes", "a power of two from 65536 to 1073741824");
        }
        if self.max_expire_sweep == 0 {
            return invalid("max_expire_sweep", "at least 1");
        }
        if matches!(self.durability, Durability::Every(period) if period.is_zero()) {
            return invalid("durability", "a period of zero; say Sync");
        }
        if self.max_age.is_some_and(|age| age.is_zero()) {
            return invalid("max_age", "more than zero");
        }
        if self.lease.is_some_and(|lease| lease < Duration::from_millis(1)) {
            return invalid("lease", "at least 1 ms");
        }
        if self.max_attempts.is_some_and(|most| !(1..=ATTEMPTS_MAX).contains(&most)) {
            return invalid("max_attempts", "1 to 31: more are not counted on disk");
        }
        if self.max_attempts.is_some() && self.dead_letters.is_none() {
            return invalid("dead_letters", "a queue for the items whose max_attempts are used up");
        }
        if let Some(name) = &self.dead_letters
            && let Err(reason) = name::check(name)
        {
            return invalid("dead_letters", reason);
        }
        if let Some(name) = &self.expire_to
            && let Err(reason) = name::check(name)
        {
            return invalid("expire_to", reason);
        }
        if self.max_queue_age.is_some_and(|age| age < Duration::from_millis(1)) {
            return invalid("max_queue_age", "at least 1 ms");
        }
        if self.pad_to.is_some_and(|bytes| bytes != 512 && bytes != 4096) {
            return invalid("pad_to", "512 or 4096 bytes, or none");
        }
        Ok(())
    }

    /// Most starts of an item in the queue `name`.
    pub(crate) fn attempts_in(&self, name: &str) -> u32 {
        let own = self.dead_letters.as_deref() == Some(name);
        self.max_attempts.filter(|_| !own).unwrap_or(u32::MAX)
    }

    pub(crate) fn lease_ms(&self) -> u64 {
        self.lease.map_or(u64::MAX, |lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX))
    }

    /// What its readers take over.
    pub(crate) fn for_readers(&self) -> QueueOptions {
        QueueOptions { max_queue_age: None, fanout_only: false, ..self.clone() }
    }

    pub(crate) fn max_age_ms(&self) -> u64 {
        self.max_age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

macro_rules! overrides {
    ($($name:ident: $type:ty $(, $form:literal $(as $called:literal)?)?;)*) => {
        /// The options of one queue that differ from the set's defaults: a field that is `None` follows them, also when they
        /// change ([`QueueSet::set_defaults`](crate::QueueSet::set_defaults)). Where an option may be absent, `Some(None)` says
        /// that it is, whatever the defaults say.
        ///
        /// Made from [`QueueOptions`] it overrides every option.
        ///
        /// With the feature `serde` it can be read from a file of settings, in the words of
        /// [`QueueOptions`](QueueOptions#in-a-file-of-settings); a field that is not named follows the defaults.
        ///
        /// ```
        /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
        /// # let dir = tempfile::tempdir()?;
        /// use kestrel_core::{QueueOptions, QueueOverrides, QueueSet};
        /// let set = QueueSet::builder().defaults(QueueOptions::default().max_items(1000)).open(dir.path())?;
        /// let own = QueueOverrides::default().max_bytes(Some(1 << 20));
        /// let jobs = set.queue_with_overrides("jobs", own)?;
        /// set.set_defaults(QueueOptions::default().max_items(10))?;
        /// let options = jobs.options();
        /// assert_eq!((options.max_items, options.max_bytes), (Some(10), Some(1 << 20)));
        /// # Ok(())
        /// # }
        /// ```
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
        #[non_exhaustive]
        pub struct QueueOverrides {
            $(
                #[doc = concat!("[`QueueOptions::", stringify!($name), "`](QueueOptions#structfield.", stringify!($name), ").")]
                #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
                $(#[cfg_attr(feature = "serde", serde(with = $form $(, rename = $called)?))])?
                pub $name: Option<$type>,
            )*
        }

        impl QueueOverrides {
            $(
                #[doc = concat!("Sets [`QueueOptions::", stringify!($name), "`](QueueOptions#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$name = Some(value);
                    self
                }
            )*

            /// The options in force above these.
            pub(crate) fn over(&self, below: &QueueOptions) -> QueueOptions {
                QueueOptions { $($name: self.$name.clone().unwrap_or_else(|| below.$name.clone()),)* }
            }
        }

        impl From<QueueOptions> for QueueOverrides {
            fn from(options: QueueOptions) -> QueueOverrides {
                QueueOverrides { $($name: Some(options.$name),)* }
            }
        }
    };
}

overrides! {
    max_items: Option<u64>, "form::own";
    max_bytes: Option<u64>, "form::own";
    max_item_size: u32;
    when_full: WhenFull;
    max_age: Option<Duration>, "form::own" as "max_age_ms";
    max_expire_sweep: u32;
    memory_bytes: u64;
    segment_bytes: u32;
    durability: Durability;
    journal: bool;
    lease: Option<Duration>, "form::own" as "lease_ms";
    max_attempts: Option<u32>, "form::own";
    dead_letters: Option<String>, "form::own";
    expire_to: Option<String>, "form::own";
    max_queue_age: Option<Duration>, "form::own" as "max_queue_age_ms";
    fanout_only: bool;
    pad_to: Option<u32>, "form::own";
}

impl QueueOverrides {
    /// The options in force above `below` in the queue `name`, if they are right. Where the defaults name the queue itself for
    /// its dead letters, it has none.
    pub(crate) fn check_over(&self, below: &QueueOptions, name: &str) -> Result<QueueOptions, OptionsError> {
        if let Some(Some(letters)) = &self.dead_letters
            && letters == name
        {
            return Err(OptionsError::Invalid { field: "dead_letters", reason: "another queue than this one" });
        }
        let options = self.over(below);
        options.check()?;
        Ok(options)
    }

    /// Tag (1 byte), length (1 byte), value; a tag that is absent follows the defaults, one without a value says that there is no
    /// limit, an unknown one is skipped.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A name has at most 200 bytes.
        let mut push = |tag: u8, value: Option<&[u8]>| {
            let value = value.unwrap_or_default();
            out.extend_from_slice(&[tag, value.len() as u8]);
            out.extend_from_slice(value);
        };
        let word = |value: u64| value.to_le_bytes();
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
        for (tag, limit) in [
            (1, self.max_items),
            (2, self.max_bytes),
            (13, self.max_attempts.map(|most| most.map(u64::from))),
            (21, self.pad_to.map(|bytes| bytes.map(u64::from))),
        ] {
            if let Some(limit) = limit {
                push(tag, limit.map(word).as_ref().map(|value| &value[..]));
            }
        }
        let when_full = self.when_full.map(|when_full| match when_full {
            WhenFull::Refuse => 0,
            WhenFull::DropOldest => 1,
            WhenFull::Wait => 2,
        });
        for (tag, value) in [
            (3, self.max_item_size.map(u64::from)),
            (4, when_full),
            (6, self.max_expire_sweep.map(u64::from)),
            (7, self.memory_bytes),
            (8, self.segment_bytes.map(u64::from)),
            (11, self.journal.map(u64::from)),
            (20, self.fanout_only.map(u64::from)),
        ] {
            if let Some(value) = value {
                push(tag, Some(&word(value)));
            }
        }
        match self.durability {
            None => {}
            Some(Durability::Sync) => push(9, Some(&word(0))),
            Some(Durability::Os) => push(9, Some(&word(1))),
            Some(Durability::Every(period)) => push(10, Some(&nanos(period))),
        }
        for (tag, span) in [(5, self.max_age), (12, self.lease), (16, self.max_queue_age)] {
            if let Some(span) = span {
                push(tag, span.map(nanos).as_ref().map(|value| &value[..]));
            }
        }
        for (tag, name) in [(14, &self.dead_letters), (15, &self.expire_to)] {
            if let Some(name) = name {
                push(tag, name.as_ref().map(String::as_bytes));
            }
        }
        out
    }

    /// `None` if the bytes are not options; they stand under a checksum, so that is damage or a foreign hand.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<QueueOverrides> {
        let mut own = QueueOverrides::default();
        let mut bytes = Bytes(bytes);
        while let Some(tag) = bytes.u8() {
            let len = bytes.u8()?;
            let value = bytes.take(len.into())?;
            if let 14 | 15 = tag {
                let name = std::str::from_utf8(value).ok()?;
                let name = Some((!name.is_empty()).then(|| name.to_owned()));
                *(if tag == 14 { &mut own.dead_letters } else { &mut own.expire_to }) = name;
                continue;
            }
            let word = match value {
                [] => None,
                _ => match <[u8; 8]>::try_from(value) {
                    Ok(word) => Some(u64::from_le_bytes(word)),
                    Err(_) => continue,
                },
            };
            let nanos = word.map(Duration::from_nanos);
            match tag {
                1 => own.max_items = Some(word),
                2 => own.max_bytes = Some(word),
                3 => own.max_item_size = Some(word?.try_into().ok()?),
                4 => {
                    own.when_full = Some(match word? {
                        0 => WhenFull::Refuse,
                        1 => WhenFull::DropOldest,
                        2 => WhenFull::Wait,
                        _ => return None,
                    })
                }
                5 => own.max_age = Some(nanos),
                6 => own.max_expire_sweep = Some(word?.try_into().ok()?),
                7 => own.memory_bytes = Some(word?),
                8 => own.segment_bytes = Some(word?.try_into().ok()?),
                9 => own.durability = Some(if word? == 0 { Durability::Sync } else { Durability::Os }),
                10 => own.durability = Some(Durability::Every(nanos?)),
                11 => own.journal = Some(word? != 0),
                12 => own.lease = Some(nanos),
                13 => own.max_attempts = Some(word.map(u32::try_from).transpose().ok()?),
                16 => own.max_queue_age = Some(nanos),
                20 => own.fanout_only = Some(word? != 0),
                21 => own.pad_to = Some(word.map(u32::try_from).transpose().ok()?),
                _ => {}
            }
        }
        Some(own)
    }

    /// What of these a reader of a queue with the options `queue` may have of its own: the journal is its queue's, and so is what
    /// belongs to it. That may be said here only as it is.
    pub(crate) fn for_reader(mut self, queue: &QueueOptions) -> Result<QueueOverrides, OptionsError> {
        let queue = queue.for_readers();
        macro_rules! shared {
            ($($field:ident),*) => {$(
                if self.$field.take().is_some_and(|own| own != queue.$field) {
                    return Err(OptionsError::Invalid {
                        field: stringify!($field),
                        reason: "a reader has none of its own",
                    });
                }
            )*};
        }
        shared!(max_item_size, segment_bytes, durability, journal, max_queue_age, fanout_only, pad_to);
        Ok(self)
    }
}

/// What a reader that is created has of its own: [`Queue::reader_with`](crate::Queue::reader_with). The rest is as in its queue, and
/// follows it when that changes.
///
/// ```
/// use kestrel_core::{ReaderOptions, WhenFull};
/// let options = ReaderOptions::new().from_oldest(true).max_items(1_000).when_full(WhenFull::DropOldest);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaderOptions {
    pub(crate) from_oldest: bool,
    pub(crate) own: QueueOverrides,
}

impl ReaderOptions {
    /// As the queue, from the next item on.
    pub fn new() -> Self {
        Self::default()
    }

    /// `true`: the reader starts with the oldest item that is still in the journal, also such as the queue itself is done with.
    /// Looks at each item that is there, while puts wait. Default: `false`, with the items that are put after its creation.
    #[must_use]
    pub fn from_oldest(mut self, from_oldest: bool) -> Self {
        self.from_oldest = from_oldest;
        self
    }

    /// All options of its own at once, in place of those given before.
    #[must_use]
    pub fn overrides(mut self, own: QueueOverrides) -> Self {
        self.own = own;
        self
    }
}

macro_rules! reader_setters {
    ($($name:ident: $type:ty => $wrap:expr;)*) => {
        impl ReaderOptions {
            $(#[doc = concat!("As [`QueueOptions::", stringify!($name), "`](QueueOptions#structfield.", stringify!($name), "), for the reader.")]
            #[must_use]
            pub fn $name(mut self, value: $type) -> Self {
                self.own.$name = Some(($wrap)(value));
                self
            })*
        }
    };
}

reader_setters! {
    max_items: u64 => Some;
    max_bytes: u64 => Some;
    when_full: WhenFull => std::convert::identity;
    max_age: Duration => Some;
    max_expire_sweep: u32 => std::convert::identity;
    memory_bytes: u64 => std::convert::identity;
    lease: Duration => Some;
    max_attempts: u32 => Some;
    dead_letters: impl Into<String> => |name: _| Some(Into::into(name));
    expire_to: impl Into<String> => |name: _| Some(Into::into(name));
}

/// What one put asks for beyond its queue's options: [`Queue::put_with`](crate::Queue::put_with).
///
/// ```
/// use std::time::Duration;
/// use kestrel_core::{Durability, PutOptions};
/// let options = PutOptions::new().expires_in(Duration::from_secs(60)).durability(Durability::Os).flags(7);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    pub(crate) expiry: Expiry,
    pub(crate) durability: Option<Durability>,
    pub(crate) flags: u32,
    pub(crate) delay: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Expiry {
    #[default]
    Never,
    In(Duration),
    At(SystemTime),
}

impl PutOptions {
    /// As a plain put: no expiry of its own, the queue's durability, flags 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the item has nothing but its payload.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.expiry == Expiry::Never && self.flags == 0 && self.delay.is_zero()
    }

    /// The item expires this long after the put. Zero: it has expired at the next millisecond.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expiry = Expiry::In(time);
        self
    }

    /// The item expires after this moment of the wall clock; it is accepted even if that has passed.
    #[must_use]
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expiry = Expiry::At(time);
        self
    }

    /// Another durability than the queue's, for this put. `Every` means the queue's own period, or `Os` if it has none.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// The item is not delivered before this much time has passed: until then no get, open or peek meets it, and
    /// [`Queue::len`](crate::Queue::len) does not count it. After that it stands before all items that were put later than its
    /// due time. It keeps its delay across a restart, and a clock that is set back does not lengthen it; an item that expires
    /// before it is due is never delivered. Limits count it from the put on.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// 32 bits of the user's own, returned with the item.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_options_are_named() {
        let base = QueueOptions::default;
        for (options, field) in [
            (base().segment_bytes(100_000), "segment_bytes"),
            (base().segment_bytes(1 << 31), "segment_bytes"),
            (base().segment_bytes(32 << 10), "segment_bytes"),
            (base().max_item_size(1 << 28), "max_item_size"),
            (base().max_expire_sweep(0), "max_expire_sweep"),
            (base().max_age(Duration::ZERO), "max_age"),
            (base().durability(Durability::Every(Duration::ZERO)), "durability"),
            (base().lease(Duration::from_micros(999)), "lease"),
            (base().dead_letters("dead").max_attempts(0), "max_attempts"),
            (base().dead_letters("dead").max_attempts(32), "max_attempts"),
            (base().max_attempts(3), "dead_letters"),
            (base().dead_letters(""), "dead_letters"),
            (base().expire_to("a+b"), "expire_to"),
            (base().max_queue_age(Duration::ZERO), "max_queue_age"),
            (base().pad_to(0), "pad_to"),
            (base().pad_to(1024), "pad_to"),
        ] {
            assert!(matches!(options.check(), Err(OptionsError::Invalid { field: f, .. }) if f == field));
        }
        assert!(base().check().is_ok());
    }

    proptest! {
        #[test]
        fn stored_options_come_back(
            items in any::<Option<u64>>(), bytes in any::<Option<u64>>(), size in 0..ITEM_MAX, age in 1u64..u64::MAX,
            sweep in 1u32.., memory in any::<u64>(), log in 16u32..=30, full in 0usize..3, durability in 0u64..5, journal: bool,
            lease in 1_000_000u64.., attempts in proptest::option::of(1u32..=31), dead in "[a-zé]{1,60}",
        ) {
            let options = QueueOptions {
                max_items: items,
                max_bytes: bytes,
                max_item_size: size,
                when_full: [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::Wait][full],
                max_age: (age % 2 == 0).then(|| Duration::from_nanos(age)),
                max_expire_sweep: sweep,
                memory_bytes: memory,
                segment_bytes: 1 << log,
                durability: match durability {
                    0 => Durability::Sync,
                    1 => Durability::Os,
                    n => Durability::Every(Duration::from_nanos(n * 1_000_000_007)),
                },
                journal,
                lease: (lease % 2 == 0).then(|| Duration::from_nanos(lease)),
                max_attempts: attempts,
                dead_letters: (attempts.is_some() || lease % 3 == 0).then(|| dead.clone()),
                expire_to: (age % 3 == 0).then_some(dead),
                max_queue_age: (age % 5 == 0).then(|| Duration::from_nanos(lease)),
                fanout_only: age % 7 == 0,
                pad_to: [None, Some(512), Some(4096)][full],
            };
            let own = QueueOverrides::from(options.clone());
            prop_assert_eq!(own.over(&QueueOptions::default().max_items(7).max_attempts(2).dead_letters("x")), options);
            prop_assert_eq!(QueueOverrides::from_bytes(&own.to_bytes()), Some(own.clone()));
            let some = QueueOverrides {
                max_items: own.max_items,
                durability: own.durability,
                expire_to: own.expire_to,
                ..QueueOverrides::default()
            };
            prop_assert_eq!(QueueOverrides::from_bytes(&some.to_bytes()), Some(some));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = QueueOverrides::from_bytes(&bytes);
        }
    }
}
