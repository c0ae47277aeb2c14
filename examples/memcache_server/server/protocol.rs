//! The memcache text protocol with Kestrel's words: bytes in, requests out. No I/O, no clock, no queue.
//!
//! [`Parser::next`] looks at the bytes received and not yet used, and answers with the next request and its length. It keeps
//! no bytes of its own: all that it remembers is how much of a value that is too large is still to be skipped.

use std::time::{Duration, UNIX_EPOCH};

use kestrel_core::PutOptions;

/// Longest line, its end included: memcached's 2 KiB and a key.
pub(crate) const LINE_MAX: usize = 2048 + KEY_MAX;
/// Longest key, options included.
pub(crate) const KEY_MAX: usize = 250;
/// The first byte of every request of the binary protocol, and the length of its header.
const BINARY: (u8, usize) = (0x80, 24);

/// What to do with the bytes at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// Nothing, until there are more.
    More,
    /// Carry this out, without an answer if `noreply` was said; it took so many bytes.
    Request(Request<'a>, bool, usize),
    /// Drop so many: they belong to a value that was too large.
    Skip(usize),
    /// Answer this and disconnect: where the next request begins is not known.
    Broken(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// Queue, flags and expiry, data.
    Set(&'a str, PutOptions, &'a [u8]),
    /// A value beyond the limit, which is being skipped.
    TooLarge,
    /// Whether ids are asked for.
    Get(Vec<Key<'a>>, bool),
    /// Queue, seconds, most items.
    Monitor(&'a str, u64, u64),
    Confirm(&'a str, u64),
    /// Any other word, in small letters, and those behind it.
    Other(String, Vec<&'a str>),
    /// A client that speaks the binary protocol: its opcode, and what it wants to see again.
    Binary(u8, [u8; 4]),
}

/// A key with its options: `queue/open/t=100`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    pub(crate) text: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) wait_ms: u64,
    pub(crate) open: bool,
    pub(crate) close: bool,
    pub(crate) abort: bool,
    pub(crate) peek: bool,
}

type Parsed<T> = Result<T, &'static str>;
/// A request, whether `noreply` was said, and how many bytes behind its line belong to it.
type Whole<'a> = (Request<'a>, bool, usize);

impl<'a> Key<'a> {
    fn parse(text: &'a str) -> Parsed<Key<'a>> {
        let mut parts = text.split('/');
        let queue = named(parts.next().unwrap_or_default())?;
        let mut key = Key { text: named(text)?, queue, ..Key::default() };
        for option in parts {
            match (option, option.strip_prefix("t=")) {
                ("open", _) => key.open = true,
                ("close", _) => key.close = true,
                ("abort", _) => key.abort = true,
                ("peek", _) => key.peek = true,
                (_, Some(ms)) => key.wait_ms = number(ms)?,
                _ => {}
            }
        }
        if (key.peek || key.abort) && (key.open || key.close) || key.peek && key.abort {
            return Err("CLIENT_ERROR options exclude each other");
        }
        Ok(key)
    }
}

#[derive(Debug)]
pub(crate) struct Parser {
    /// Largest value, in bytes; larger ones are skipped and answered by [`Request::TooLarge`].
    pub(crate) value_max: usize,
    skip: u64,
    /// The line end behind a skipped value is still to come.
    skip_end: bool,
}

impl Parser {
    pub(crate) fn new(value_max: usize) -> Parser {
        Parser { value_max, skip: 0, skip_end: false }
    }

    pub(crate) fn next<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        self.step(input).unwrap_or_else(Step::Broken)
    }

    fn step<'a>(&mut self, input: &'a [u8]) -> Parsed<Step<'a>> {
        let Some(&first) = input.first() else {
            return Ok(Step::More);
        };
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(input.len());
            self.skip -= skipped as u64;
            return Ok(Step::Skip(skipped));
        }
        if self.skip_end {
            let end = line_end(input)?;
            self.skip_end = end.is_none();
            return Ok(end.map_or(Step::More, Step::Skip));
        }
        if first == BINARY.0 {
            let head = input.get(..BINARY.1).map(|h| Request::Binary(h[1], [h[12], h[13], h[14], h[15]]));
            return Ok(head.map_or(Step::More, |head| Step::Request(head, false, BINARY.1)));
        }
        let Some(end) = input.iter().take(LINE_MAX).position(|&byte| byte == b'\n') else {
            return if input.len() < LINE_MAX { Ok(Step::More) } else { Err("CLIENT_ERROR line too long") };
        };
        let whole = self.line(&input[..end], &input[end + 1..])?;
        Ok(whole.map_or(Step::More, |(request, quiet, more)| Step::Request(request, quiet, end + 1 + more)))
    }

    /// A line, without its end, and what follows it.
    fn line<'a>(&mut self, line: &'a [u8], after: &'a [u8]) -> Parsed<Option<Whole<'a>>> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| "CLIENT_ERROR not UTF-8")?.trim_end_matches(' ');
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        if command.eq_ignore_ascii_case("get") || command.eq_ignore_ascii_case("gets") {
            let keys = words.map(Key::parse).collect::<Parsed<Vec<_>>>()?;
            return match keys.is_empty() {
                true => Err("CLIENT_ERROR no queue named"),
                false => Ok(Some((Request::Get(keys, command.len() == 4), false, 0))),
            };
        }
        let mut words: Vec<&str> = words.collect();
        let command = command.to_ascii_lowercase();
        // Where a queue must be named, the first word names it.
        let first = usize::from(command != "flush_all");
        let quiet = words.len() > first && words.pop_if(|word| word.eq_ignore_ascii_case("noreply")).is_some();
        let request = match (&*command, &words[..]) {
            ("set", [queue, flags, expiry, bytes]) => {
                let flags = u32::try_from(number(flags)?).map_err(|_| "CLIENT_ERROR flags have 32 bits")?;
                let (queue, options) = (named(queue)?, expiring(PutOptions::new().flags(flags), expiry)?);
                let bytes = number(bytes)?;
                return self.value(queue, options, bytes, quiet, after);
            }
            ("set", _) => return Err("CLIENT_ERROR malformed request"),
            ("monitor", [queue, seconds]) => Request::Monitor(named(queue)?, number(seconds)?, u64::MAX),
            ("monitor", [queue, seconds, most]) => Request::Monitor(named(queue)?, number(seconds)?, number(most)?),
            ("confirm", [queue, count]) => Request::Confirm(named(queue)?, number(count)?),
            _ => Request::Other(command, words),
        };
        Ok(Some((request, quiet, 0)))
    }

    /// The value of a `set`, if it has come whole.
    fn value<'a>(
        &mut self,
        queue: &'a str,
        options: PutOptions,
        bytes: u64,
        quiet: bool,
        after: &'a [u8],
    ) -> Parsed<Option<Whole<'a>>> {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        if len > self.value_max {
            (self.skip, self.skip_end) = (bytes, true);
            return Ok(Some((Request::TooLarge, quiet, 0)));
        }
        let Some((data, after)) = after.split_at_checked(len) else {
            return Ok(None);
        };
        let end = line_end(after)?;
        Ok(end.map(|end| (Request::Set(queue, options, data), quiet, len + end)))
    }
}

fn named(word: &str) -> Parsed<&str> {
    match word.len() {
        0 => Err("CLIENT_ERROR no queue named"),
        1..=KEY_MAX => Ok(word),
        _ => Err("CLIENT_ERROR key too long"),
    }
}

/// Digits and nothing else: `parse` would take a sign.
fn number(word: &str) -> Parsed<u64> {
    let digits = Some(word).filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|word| word.parse().ok()).ok_or("CLIENT_ERROR bad number")
}

/// `exptime`: negative is over, 0 never, below a million a number of seconds from now, else seconds since 1970.
fn expiring(options: PutOptions, word: &str) -> Parsed<PutOptions> {
    if let Some(past) = word.strip_prefix('-') {
        return Ok(if number(past)? == 0 { options } else { options.expires_at(UNIX_EPOCH) });
    }
    let seconds = number(word)?;
    let time = Duration::from_secs(seconds);
    Ok(match (seconds, UNIX_EPOCH.checked_add(time)) {
        (1..1_000_000, _) => options.expires_in(time),
        // Later than the clock can say is never, too.
        (0, _) | (_, None) => options,
        (_, Some(time)) => options.expires_at(time),
    })
}

/// The length of the line end that stands here, if it has come whole.
fn line_end(bytes: &[u8]) -> Parsed<Option<usize>> {
    match bytes {
        [b'\n', ..] => Ok(Some(1)),
        [b'\r', b'\n', ..] => Ok(Some(2)),
        [] | [b'\r'] => Ok(None),
        _ => Err("CLIENT_ERROR bad data chunk"),
    }
}
