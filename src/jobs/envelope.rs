//! What is stored of a job: a head of fields before the bytes of its value.
//!
//! ```text
//! 0x4A 'J', version 1, fields, 0x00, the value's bytes to the end
//! a field: tag (1 byte), length (2 bytes), content; all numbers little-endian
//! ```
//!
//! A field that says what is so by default is left out: a fresh job has its kind and codec, and some 20 bytes more. A field from a
//! later version whose tag is 128 or more may be passed over; one below that may not, and then these bytes are no job to this
//! version. The reader believes nothing: every length is checked, every count bounded.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::jobs::id::JobId;
use crate::jobs::job::{Backoff, Keep, Priority, Unique};
use crate::jobs::status::{Cause, DeadReason, Failure};

const MAGIC: u8 = 0x4A;
const VERSION: u8 = 1;
const MAY_SKIP: u8 = 128;

/// Longest texts that are stored.
pub(crate) const KIND_MAX: usize = 100;
pub(crate) const TAG_MAX: usize = 200;
pub(crate) const KEY_MAX: usize = 1024;
pub(crate) const ERROR_MAX: usize = 1024;
const FAILURES_MAX: usize = 3;

pub(crate) const ATTEMPTS: u32 = 20;
pub(crate) const CRASHES: u32 = 3;

/// Everything that is stored beside the bytes of a value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) kind: String,
    pub(crate) codec: u32,
    /// The job's id where it is not that of its place.
    pub(crate) origin: Option<JobId>,
    /// When it was pushed, if not when it was put where it is. All times are ms since 1970.
    pub(crate) pushed_ms: Option<u64>,
    pub(crate) due_ms: Option<u64>,
    /// The due time is one of the wall clock.
    pub(crate) by_wall: bool,
    /// It pauses because it has failed.
    pub(crate) retrying: bool,
    pub(crate) priority: Priority,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) key: Option<Key>,
    pub(crate) limits: Limits,
    pub(crate) backoff: Stored,
    pub(crate) keep_done: Option<Kept>,
    pub(crate) keep_dead: Option<Kept>,
    /// Before it came to its place; the queue counts the starts since.
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) snoozes: u32,
    pub(crate) first_failure_ms: Option<u64>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) tag: Option<String>,
    pub(crate) dead: Option<(DeadReason, u64)>,
    /// When a worker first met it that did not know its kind.
    pub(crate) unknown_ms: Option<u64>,
    /// A record of a job that has ended, and when; the bytes behind are its output.
    pub(crate) ended: Option<(Ended, u64)>,
    /// Staged for this queue.
    pub(crate) queue: Option<String>,
    /// Staged, and takes the place of the job that has its key by then.
    pub(crate) replaces: bool,
    /// No job: the bytes behind are an item as it was met.
    pub(crate) raw: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { attempts: ATTEMPTS, crashes: CRASHES }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) unique: Unique,
    pub(crate) bytes: Vec<u8>,
}

/// A backoff as it can be stored; a custom one is the default then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stored {
    #[default]
    Default,
    None,
    Fixed(u64),
    Exponential(u64, u64),
    Polynomial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) count: u64,
    pub(crate) age_ms: u64,
    pub(crate) output: bool,
}

/// How a recorded job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    Cancelled,
}

impl From<Keep> for Kept {
    fn from(keep: Keep) -> Kept {
        Kept { count: keep.count, age_ms: keep.age.map_or(u64::MAX, ms), output: keep.output }
    }
}

impl From<&Backoff> for Stored {
    fn from(backoff: &Backoff) -> Stored {
        match backoff {
            Backoff::Default | Backoff::Custom(_) => Stored::Default,
            Backoff::None => Stored::None,
            Backoff::Fixed(pause) => Stored::Fixed(ms(*pause)),
            Backoff::Exponential { first, max } => Stored::Exponential(ms(*first).max(1), ms(*max).max(1)),
            Backoff::Polynomial => Stored::Polynomial,
        }
    }
}

pub(crate) fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn time_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, ms)
}

pub(crate) fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// The beginning of a text, up to `max` bytes, whole characters.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

impl Envelope {
    /// Whether the job may take no more failures after this many starts.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.attempts >= self.limits.attempts
    }

    pub(crate) fn note_failure(&mut self, cause: Cause, at_ms: u64, error: &str) {
        self.first_failure_ms.get_or_insert(at_ms);
        if self.failures.len() >= FAILURES_MAX {
            self.failures.remove(0);
        }
        let error = cut(error, ERROR_MAX).to_owned();
        self.failures.push(Failure { attempt: self.attempts, at: at(at_ms), cause, error });
    }

    pub(crate) fn last_error(&self) -> &str {
        self.failures.last().map_or("", |failure| &failure.error)
    }

    /// An item that is no job, as it is kept among the dead.
    pub(crate) fn of_raw() -> Envelope {
        Envelope { raw: true, ..Envelope::default() }
    }

    /// The head and, behind it, `value`.
    pub(crate) fn encode(&self, value: &[u8]) -> Vec<u8> {
        let mut out = self.head(value.len());
        out.extend_from_slice(value);
        out
    }

    /// The head, with room behind it.
    pub(crate) fn head(&self, room: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.kind.len() + room);
        out.extend_from_slice(&[MAGIC, VERSION]);
        let mut field = |tag: u8, parts: &[&[u8]]| {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            // Every content is bounded where it comes in.
            out.push(tag);
            out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        let word = |value: u64| value.to_le_bytes();
        field(1, &[self.kind.as_bytes()]);
        if self.codec != 0 {
            field(2, &[&self.codec.to_le_bytes()]);
        }
        if let Some(id) = self.origin {
            field(3, &[&id.lane.to_le_bytes(), &word(id.item)]);
        }
        for (tag, time) in [
            (4, self.pushed_ms),
            (5, self.due_ms),
            (8, self.expires_ms),
            (17, self.first_failure_ms),
            (25, self.unknown_ms),
        ] {
            if let Some(time) = time {
                field(tag, &[&word(time)]);
            }
        }
        for (tag, is_so) in [(6, self.by_wall), (24, self.retrying), (26, self.raw), (27, self.replaces)] {
            if is_so {
                field(tag, &[]);
            }
        }
        if self.priority != Priority::Normal {
            field(7, &[&[self.priority as u8]]);
        }
        if let Some(Key { unique, bytes }) = &self.key {
            let (mode, window) = match unique {
                Unique::No => (0, 0),
                Unique::UntilStarted => (1, 0),
                Unique::UntilDone => (2, 0),
                Unique::Window(window) => (3, ms(*window)),
            };
            field(9, &[&[mode], &word(window), bytes]);
        }
        for (tag, count, default) in [
            (10, self.limits.attempts, ATTEMPTS),
            (11, self.limits.crashes, CRASHES),
            (13, self.attempts, 0),
            (14, self.crashes, 0),
            (15, self.snoozes, 0),
        ] {
            if count != default {
                field(tag, &[&count.to_le_bytes()]);
            }
        }
        let (kind, first, second) = match self.backoff {
            Stored::Default => (0, 0, 0),
            Stored::None => (1, 0, 0),
            Stored::Fixed(pause) => (2, pause, 0),
            Stored::Exponential(first, max) => (3, first, max),
            Stored::Polynomial => (4, 0, 0),
        };
        if kind != 0 {
            field(12, &[&[kind], &word(first), &word(second)]);
        }
        for failure in &self.failures {
            let cause = match failure.cause {
                Cause::Error => 0,
                Cause::Panic => 1,
                Cause::Crash => 2,
                Cause::Timeout => 3,
                Cause::Undecodable => 4,
            };
            let (attempt, at_ms) = (failure.attempt.to_le_bytes(), word(time_ms(failure.at)));
            field(16, &[&attempt, &at_ms, &[cause], failure.error.as_bytes()]);
        }
        if let Some(tag) = &self.tag {
            field(18, &[tag.as_bytes()]);
        }
        if let Some((reason, at_ms)) = self.dead {
            field(19, &[&[reason as u8], &word(at_ms)]);
        }
        for (tag, kept) in [(20, self.keep_done), (21, self.keep_dead)] {
            if let Some(Kept { count, age_ms, output }) = kept {
                field(tag, &[&word(count), &word(age_ms), &[output.into()]]);
            }
        }
        if let Some((ended, at_ms)) = self.ended {
            field(22, &[&[ended as u8], &word(at_ms)]);
        }
        if let Some(queue) = &self.queue {
            field(23, &[queue.as_bytes()]);
        }
        out.push(0);
        out
    }

    /// The head, and where the value's bytes begin. `None`: these bytes are no job.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Envelope, usize)> {
        let mut left = Fields(bytes);
        if left.take(2)? != [MAGIC, VERSION] {
            return None;
        }
        let mut envelope = Envelope::default();
        loop {
            let tag = left.u8()?;
            if tag == 0 {
                break;
            }
            let len = u16::from_le_bytes(left.take(2)?.try_into().ok()?);
            let mut field = Fields(left.take(len.into())?);
            envelope.read(tag, &mut field)?;
            if !field.0.is_empty() && tag < MAY_SKIP {
                return None;
            }
        }
        Some((envelope, bytes.len() - left.0.len()))
    }

    fn read(&mut self, tag: u8, field: &mut Fields<'_>) -> Option<()> {
        match tag {
            1 => self.kind = field.text(KIND_MAX)?,
            2 => self.codec = field.u32()?,
            3 => self.origin = Some(JobId { lane: field.u32()?, item: field.u64()? }),
            4 => self.pushed_ms = Some(field.u64()?),
            5 => self.due_ms = Some(field.u64()?),
            6 => self.by_wall = true,
            7 => self.priority = *Priority::ALL.get(usize::from(field.u8()?))?,
            8 => self.expires_ms = Some(field.u64()?),
            9 => {
                let (mode, window) = (field.u8()?, field.u64()?);
                let unique = match mode {
                    0 => Unique::No,
                    1 => Unique::UntilStarted,
                    2 => Unique::UntilDone,
                    3 => Unique::Window(Duration::from_millis(window)),
                    _ => return None,
                };
                self.key = Some(Key { unique, bytes: field.rest(KEY_MAX)?.to_vec() });
            }
            10 => self.limits.attempts = field.u32()?,
            11 => self.limits.crashes = field.u32()?,
            12 => {
                let (kind, first, second) = (field.u8()?, field.u64()?, field.u64()?);
                self.backoff = match kind {
                    1 => Stored::None,
                    2 => Stored::Fixed(first),
                    3 => Stored::Exponential(first, second),
                    4 => Stored::Polynomial,
                    _ => return None,
                };
            }
            13 => self.attempts = field.u32()?,
            14 => self.crashes = field.u32()?,
            15 => self.snoozes = field.u32()?,
            16 => {
                let (attempt, at_ms, cause) = (field.u32()?, field.u64()?, field.u8()?);
                let causes = [Cause::Error, Cause::Panic, Cause::Crash, Cause::Timeout, Cause::Undecodable];
                let cause = *causes.get(usize::from(cause))?;
                if self.failures.len() >= FAILURES_MAX {
                    return None;
                }
                self.failures.push(Failure { attempt, at: at(at_ms), cause, error: field.text(ERROR_MAX)? });
            }
            17 => self.first_failure_ms = Some(field.u64()?),
            18 => self.tag = Some(field.text(TAG_MAX)?),
            19 => self.dead = Some((*DeadReason::ALL.get(usize::from(field.u8()?))?, field.u64()?)),
            20 | 21 => {
                let kept = Kept { count: field.u64()?, age_ms: field.u64()?, output: field.u8()? != 0 };
                *(if tag == 20 { &mut self.keep_done } else { &mut self.keep_dead }) = Some(kept);
            }
            22 => {
                let ended = *[Ended::Done, Ended::Cancelled].get(usize::from(field.u8()?))?;
                self.ended = Some((ended, field.u64()?));
            }
            23 => self.queue = Some(field.text(200)?),
            24 => self.retrying = true,
            25 => self.unknown_ms = Some(field.u64()?),
            26 => self.raw = true,
            27 => self.replaces = true,
            MAY_SKIP.. => {}
            _ => return None,
        }
        Some(())
    }
}

/// Bytes that are taken one after the other, if they are there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(len)?;
        self.0 = left;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn rest(&mut self, max: usize) -> Option<&'a [u8]> {
        if self.0.len() > max {
            return None;
        }
        self.take(self.0.len())
    }

    fn text(&mut self, max: usize) -> Option<String> {
        std::str::from_utf8(self.rest(max)?).ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_envelope() -> impl Strategy<Value = Envelope> {
        let times = (any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>());
        let counts = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
        let texts =
            ("[a-zé]{1,40}", proptest::option::of("[a-z ]{0,60}"), proptest::collection::vec("[a-zé]{0,200}", 0..4));
        (times, counts, texts, any::<(u32, u64, u8, bool, bool)>(), proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(times, counts, texts, (lane, item, pick, yes, no), key)| Envelope {
                kind: texts.0,
                codec: lane,
                origin: yes.then_some(JobId { lane, item }),
                pushed_ms: times.0,
                due_ms: times.1,
                by_wall: yes,
                retrying: no,
                replaces: yes ^ no,
                priority: Priority::ALL[usize::from(pick % 4)],
                expires_ms: times.2,
                key: no.then_some(Key {
                    unique: [
                        Unique::No,
                        Unique::UntilStarted,
                        Unique::UntilDone,
                        Unique::Window(Duration::from_millis(item)),
                    ][usize::from(pick % 4)],
                    bytes: key,
                }),
                limits: Limits { attempts: counts.0, crashes: counts.1 },
                backoff: [
                    Stored::Default,
                    Stored::None,
                    Stored::Fixed(item),
                    Stored::Exponential(item, 7),
                    Stored::Polynomial,
                ][usize::from(pick % 5)],
                keep_done: yes.then_some(Kept { count: item, age_ms: u64::MAX, output: no }),
                keep_dead: no.then_some(Kept { count: item, age_ms: 7, output: false }),
                attempts: counts.2,
                crashes: counts.3,
                snoozes: counts.4,
                first_failure_ms: times.3,
                failures: texts
                    .2
                    .into_iter()
                    .take(3)
                    .map(|error| Failure { attempt: lane, at: at(u64::from(lane)), cause: Cause::Panic, error })
                    .collect(),
                tag: texts.1,
                unknown_ms: times.0,
                dead: yes.then_some((DeadReason::ALL[usize::from(pick % 6)], item)),
                ended: no.then_some((if yes { Ended::Done } else { Ended::Cancelled }, item)),
                queue: yes.then(|| "mail".to_owned()),
                raw: no,
            })
    }

    proptest! {
        #[test]
        fn what_is_stored_comes_back(envelope in any_envelope(), value in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = envelope.encode(&value);
            let (read, at) = Envelope::decode(&bytes).expect("its own bytes");
            prop_assert_eq!(&read, &envelope);
            prop_assert_eq!(&bytes[at..], &value[..]);
            // Cut anywhere in the head it is no job.
            for end in 0..at {
                prop_assert!(Envelope::decode(&bytes[..end]).is_none());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100, with: u8) {
            let _ = Envelope::decode(&bytes);
            let mut headed = vec![MAGIC, VERSION];
            headed.extend(&bytes);
            let _ = Envelope::decode(&headed);
            let mut job = Envelope { kind: "kind".into(), ..Envelope::default() }.encode(&bytes);
            let at = at % job.len();
            job[at] = with;
            if let Some((envelope, at)) = Envelope::decode(&job) {
                prop_assert!(at <= job.len() && envelope.kind.len() <= KIND_MAX);
            }
        }
    }

    #[test]
    fn an_unknown_field_is_passed_over_only_if_it_may_be() {
        let job = Envelope { kind: "kind".into(), ..Envelope::default() }.encode(b"value");
        let with = |tag: u8| [&job[..2], &[tag, 2, 0, 9, 9], &job[2..]].concat();
        let (read, at) = Envelope::decode(&with(200)).expect("may be passed over");
        assert_eq!((read.kind.as_str(), &with(200)[at..]), ("kind", &b"value"[..]));
        assert!(Envelope::decode(&with(100)).is_none());
        assert!(Envelope::decode(b"plain text").is_none());
    }

    #[test]
    fn a_fresh_job_costs_few_bytes() {
        let bytes = Envelope { kind: "send-mail".into(), codec: 1, ..Envelope::default() }.encode(b"");
        assert!(bytes.len() <= 24, "{}", bytes.len());
    }

    #[test]
    fn the_last_three_failures_are_kept() {
        let mut envelope = Envelope::default();
        for n in 1..=5 {
            envelope.attempts = n;
            envelope.note_failure(Cause::Error, u64::from(n), &format!("{n}é").repeat(1000));
        }
        let kept: Vec<u32> = envelope.failures.iter().map(|failure| failure.attempt).collect();
        assert_eq!((kept, envelope.first_failure_ms), (vec![3, 4, 5], Some(1)));
        assert!(envelope.last_error().len() <= ERROR_MAX && envelope.last_error().starts_with("5é"));
    }
}
