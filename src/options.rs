//! All options of a queue and of a put, their defaults, their rules, and how a queue's header stores them.

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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OnDamage {
    /// That queue does not open ([`OpenError::Corrupt`](crate::OpenError::Corrupt)); others do. Nothing is changed.
    #[default]
    Refuse,
    /// The damaged range is skipped, and reported with the ids lost.
    Salvage,
}

/// How a queue behaves: limits, expiry, durability, memory.
///
/// Start from the default and set what differs, by field or by the method of the same name.
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
    pub max_items: Option<u64>,
    /// Most payload bytes waiting; a put that would exceed it does not happen. Default: no limit.
    pub max_bytes: Option<u64>,
    /// Largest payload in bytes; at most 256 MiB - 8 KiB. Default: 1 MiB.
    pub max_item_size: u32,
    /// What a put does at a limit. Default: refuse.
    pub when_full: WhenFull,
    /// An item expires this long after its put, if not earlier by its own expiry. Lowering it later affects the items
    /// that wait; raising it does not. Default: never.
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
    pub lease: Option<Duration>,
    /// How often an item is started at most, on disk counted up to 31. When the last of these starts ends without a close,
    /// by abort, drop, an ended lease or the death of the process, the item moves to the queue named by `dead_letters`,
    /// which must be set too. Default: no limit.
    pub max_attempts: Option<u32>,
    /// The queue of the same set that takes items whose `max_attempts` are used up or that are given up by
    /// [`dead_letter`](crate::OpenItem::dead_letter). It is created when first needed. Where the set's defaults name a queue
    /// here, that queue itself has no limit of attempts and no dead letters. Default: none.
    pub dead_letters: Option<String>,
    /// `true`: items put go to the queue's [readers](crate::Queue::reader) only. The queue itself gets none and stays empty, but
    /// for what it held before; without any reader a put is answered, counted as
    /// [`unread_items`](crate::QueueStats::unread_items), and stored nowhere: its id is 0. Default: `false`.
    pub fanout_only: bool,
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
            fanout_only: false,
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
    /// Sets [`QueueOptions::fanout_only`](#structfield.fanout_only).
    fanout_only: bool => std::convert::identity;
}

impl QueueOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
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
        Ok(())
    }

    /// The rules that need the queue's name.
    pub(crate) fn check_for(&self, name: &str) -> Result<(), OptionsError> {
        self.check()?;
        if self.dead_letters.as_deref() == Some(name) {
            return Err(OptionsError::Invalid { field: "dead_letters", reason: "another queue than this one" });
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

    pub(crate) fn max_age_ms(&self) -> u64 {
        self.max_age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Tag (1 byte), length (1 byte), value; a tag that is absent has its default, an unknown one is skipped.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |tag: u8, value: u64| {
            out.extend_from_slice(&[tag, 8]);
            out.extend_from_slice(&value.to_le_bytes());
        };
        if let Some(items) = self.max_items {
            push(1, items);
        }
        if let Some(bytes) = self.max_bytes {
            push(2, bytes);
        }
        push(3, self.max_item_size.into());
        push(
            4,
            match self.when_full {
                WhenFull::Refuse => 0,
                WhenFull::DropOldest => 1,
                WhenFull::Wait => 2,
            },
        );
        if let Some(age) = self.max_age {
            push(5, u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        }
        push(6, self.max_expire_sweep.into());
        push(7, self.memory_bytes);
        push(8, self.segment_bytes.into());
        match self.durability {
            Durability::Sync => push(9, 0),
            Durability::Os => push(9, 1),
            Durability::Every(period) => push(10, u64::try_from(period.as_nanos()).unwrap_or(u64::MAX)),
        }
        push(11, self.journal.into());
        if let Some(lease) = self.lease {
            push(12, u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX));
        }
        if let Some(most) = self.max_attempts {
            push(13, most.into());
        }
        if let Some(name) = &self.dead_letters {
            // A name has at most 200 bytes.
            out.extend_from_slice(&[14, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        if self.fanout_only {
            out.extend_from_slice(&[FANOUT_ONLY, 8]);
            out.extend_from_slice(&1u64.to_le_bytes());
        }
        out
    }

    /// `None` if the bytes are not options; they stand under a checksum, so that is damage or a foreign hand.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<QueueOptions> {
        Self::parse(bytes).filter(|options| options.check().is_ok())
    }

    fn parse(bytes: &[u8]) -> Option<QueueOptions> {
        let mut options = QueueOptions::default();
        let mut bytes = Bytes(bytes);
        while let Some(tag) = bytes.u8() {
            let len = bytes.u8()?;
            let value = bytes.take(len.into())?;
            if tag == 14 {
                options.dead_letters = Some(std::str::from_utf8(value).ok()?.to_owned());
                continue;
            }
            let Ok(value) = <[u8; 8]>::try_from(value) else {
                continue;
            };
            let value = u64::from_le_bytes(value);
            match tag {
                1 => options.max_items = Some(value),
                2 => options.max_bytes = Some(value),
                3 => options.max_item_size = value.try_into().ok()?,
                4 => {
                    options.when_full = match value {
                        0 => WhenFull::Refuse,
                        1 => WhenFull::DropOldest,
                        2 => WhenFull::Wait,
                        _ => return None,
                    }
                }
                5 => options.max_age = Some(Duration::from_nanos(value)),
                6 => options.max_expire_sweep = value.try_into().ok()?,
                7 => options.memory_bytes = value,
                8 => options.segment_bytes = value.try_into().ok()?,
                9 => options.durability = if value == 0 { Durability::Sync } else { Durability::Os },
                10 => options.durability = Durability::Every(Duration::from_nanos(value)),
                11 => options.journal = value != 0,
                12 => options.lease = Some(Duration::from_nanos(value)),
                13 => options.max_attempts = Some(value.try_into().ok()?),
                FANOUT_ONLY => options.fanout_only = value != 0,
                _ => {}
            }
        }
        Some(options)
    }
}

/// The tag of [`QueueOptions::fanout_only`].
const FANOUT_ONLY: u8 = 20;

/// How a reader differs from its queue: [`Queue::reader_with`](crate::Queue::reader_with).
///
/// What is not set here is as in the queue, and follows it when that changes.
///
/// ```
/// use kestrel_core::{ReaderOptions, WhenFull};
/// let options = ReaderOptions::new().from_oldest(true).max_items(1_000).when_full(WhenFull::DropOldest);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaderOptions {
    pub(crate) from_oldest: bool,
    own: QueueOptions,
    /// A bit for each of `own` that is set, by its tag.
    set: u32,
}

macro_rules! own_options {
    ($($tag:literal $name:ident: $type:ty;)*) => {
        impl ReaderOptions {
            $(#[doc = concat!("As [`QueueOptions::", stringify!($name), "`], for the reader.")]
            #[must_use]
            pub fn $name(mut self, value: $type) -> Self {
                self.own = self.own.$name(value);
                self.set |= 1 << $tag;
                self
            })*

            /// The queue's options with the reader's own in their place.
            pub(crate) fn over(&self, queue: &QueueOptions) -> QueueOptions {
                let mut options = QueueOptions { fanout_only: false, ..queue.clone() };
                $(if self.set & 1 << $tag != 0 {
                    options.$name.clone_from(&self.own.$name);
                })*
                options
            }

            /// What makes `wanted` of the queue's options.
            pub(crate) fn difference(queue: &QueueOptions, wanted: &QueueOptions) -> Result<ReaderOptions, OptionsError> {
                let mut own = ReaderOptions { own: wanted.clone(), ..ReaderOptions::default() };
                $(if queue.$name != wanted.$name {
                    own.set |= 1 << $tag;
                })*
                if own.over(queue) == *wanted {
                    return Ok(own);
                }
                let reason = "a reader has its queue's";
                let field = match wanted {
                    _ if wanted.fanout_only => "fanout_only",
                    _ if wanted.max_item_size != queue.max_item_size => "max_item_size",
                    _ if wanted.segment_bytes != queue.segment_bytes => "segment_bytes",
                    _ => "durability",
                };
                Err(OptionsError::Invalid { field, reason })
            }
        }
    };
}

own_options! {
    1 max_items: u64;
    2 max_bytes: u64;
    4 when_full: WhenFull;
    5 max_age: Duration;
    6 max_expire_sweep: u32;
    7 memory_bytes: u64;
    12 lease: Duration;
    13 max_attempts: u32;
    14 dead_letters: impl Into<String>;
}

impl ReaderOptions {
    /// As the queue, from the next item on.
    pub fn new() -> Self {
        Self::default()
    }

    /// `true`: the reader starts with the oldest item that is still in the journal, also such as the queue itself is done with.
    /// Takes time for each item that is there. Default: `false`, with the items that are put after its creation.
    #[must_use]
    pub fn from_oldest(mut self, from_oldest: bool) -> Self {
        self.from_oldest = from_oldest;
        self
    }

    /// Which are set, and all of them as a queue stores them.
    pub(crate) fn to_bytes(&self) -> (u32, Vec<u8>) {
        (self.set, self.own.to_bytes())
    }

    pub(crate) fn from_bytes(set: u32, bytes: &[u8]) -> Option<ReaderOptions> {
        Some(ReaderOptions { from_oldest: false, own: QueueOptions::parse(bytes)?, set })
    }
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
                dead_letters: (attempts.is_some() || lease % 3 == 0).then_some(dead),
                fanout_only: age % 3 == 0,
            };
            prop_assert_eq!(QueueOptions::from_bytes(&options.to_bytes()), Some(options));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = QueueOptions::from_bytes(&bytes);
        }
    }
}
