//! The memcache text protocol with Kestrel's words: bytes in, requests out. No I/O, no clock, no queue.
//!
//! [`Parser::next`] looks at the bytes received and not yet used, and answers with the next request and its length. It keeps
//! no bytes of its own: all that it remembers is how much of a value that is too large is still to be skipped.

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
    /// Carry this out; it took so many bytes.
    Request(Request<'a>, usize),
    /// Drop so many: they belong to a value that was too large.
    Skip(usize),
    /// Answer this and disconnect: where the next request begins is not known.
    Broken(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Set(Set<'a>),
    /// A value beyond the limit, which is being skipped; whether `noreply` was said, here and below.
    TooLarge(bool),
    /// Whether ids are asked for.
    Get(Vec<Key<'a>>, bool),
    /// Queue, seconds, most items.
    Monitor(&'a str, u64, usize),
    Confirm(&'a str, usize),
    Delete(&'a str, bool),
    Flush(&'a str, bool),
    FlushAll(bool),
    FlushExpired(Option<&'a str>),
    Stats,
    DumpStats(Vec<&'a str>),
    DumpConfig(Vec<&'a str>),
    Reload,
    Status(Option<State>),
    Version,
    /// A health check of memcached's meta protocol.
    Nothing,
    Quit,
    Shutdown,
    /// A client that speaks the binary protocol: its opcode, and what it wants to see again.
    Binary(u8, [u8; 4]),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Set<'a> {
    pub(crate) queue: &'a str,
    pub(crate) flags: u32,
    pub(crate) expiry: Expiry,
    pub(crate) data: &'a [u8],
    /// `noreply`.
    pub(crate) quiet: bool,
}

/// `exptime`: below a million a number of seconds from now, else seconds since 1970.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Expiry {
    Never,
    Gone,
    In(u64),
    At(u64),
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum State {
    Up,
    ReadOnly,
    Quiescent,
}

/// A key with its options: `queue/open/t=100`.
#[derive(Debug, PartialEq, Eq)]
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

const MALFORMED: &str = "CLIENT_ERROR malformed request";

impl Request<'_> {
    /// Whether `noreply` was said.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Request::Set(set) => set.quiet,
            Request::TooLarge(quiet) | Request::Delete(_, quiet) | Request::Flush(_, quiet) => *quiet,
            Request::FlushAll(quiet) => *quiet,
            _ => false,
        }
    }
}

impl<'a> Key<'a> {
    fn parse(text: &'a str) -> Parsed<Key<'a>> {
        if text.len() > KEY_MAX {
            return Err("CLIENT_ERROR key too long");
        }
        let mut parts = text.split('/');
        let queue = parts.next().unwrap_or_default();
        let mut key = Key { text, queue, wait_ms: 0, open: false, close: false, abort: false, peek: false };
        for option in parts {
            match option {
                "open" => key.open = true,
                "close" => key.close = true,
                "abort" => key.abort = true,
                "peek" => key.peek = true,
                _ => {
                    if let Some(ms) = option.strip_prefix("t=") {
                        key.wait_ms = number(ms)?;
                    }
                }
            }
        }
        if queue.is_empty() {
            return Err("CLIENT_ERROR no queue named");
        }
        if (key.peek || key.abort) && (key.open || key.close) || key.peek && key.abort {
            return Err("CLIENT_ERROR options exclude each other");
        }
        Ok(key)
    }
}

/// What is remembered between two requests.
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
        let Some(&first) = input.first() else {
            return Step::More;
        };
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(input.len());
            self.skip -= skipped as u64;
            return Step::Skip(skipped);
        }
        if self.skip_end {
            return match line_end(input) {
                Ok(Some(end)) => {
                    self.skip_end = false;
                    Step::Skip(end)
                }
                Ok(None) => Step::More,
                Err(reply) => Step::Broken(reply),
            };
        }
        if first == BINARY.0 {
            return match input.get(..BINARY.1) {
                Some(head) => {
                    let opaque = [head[12], head[13], head[14], head[15]];
                    Step::Request(Request::Binary(head[1], opaque), BINARY.1)
                }
                None => Step::More,
            };
        }
        let Some(end) = input.iter().take(LINE_MAX).position(|&byte| byte == b'\n') else {
            return if input.len() < LINE_MAX { Step::More } else { Step::Broken("CLIENT_ERROR line too long") };
        };
        match self.line(&input[..end], &input[end + 1..]) {
            Ok(Some((request, more))) => Step::Request(request, end + 1 + more),
            Ok(None) => Step::More,
            Err(reply) => Step::Broken(reply),
        }
    }

    /// A line, without its end, and what follows it. The number is how many of the following bytes belong to the request.
    fn line<'a>(&mut self, line: &'a [u8], after: &'a [u8]) -> Parsed<Option<(Request<'a>, usize)>> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| "CLIENT_ERROR not UTF-8")?.trim_end_matches(' ');
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut lower = [0; 20];
        let command = match lower.get_mut(..word.len()) {
            Some(command) => {
                command.copy_from_slice(word.as_bytes());
                command.make_ascii_lowercase();
                &*command
            }
            None => &[],
        };
        let request = match command {
            b"set" => return self.set(rest, after),
            b"get" | b"gets" => {
                Request::Get(rest.split(' ').map(Key::parse).collect::<Parsed<_>>()?, command == b"gets")
            }
            _ => other(command, rest)?,
        };
        Ok(Some((request, 0)))
    }

    fn set<'a>(&mut self, rest: &'a str, after: &'a [u8]) -> Parsed<Option<(Request<'a>, usize)>> {
        let mut words = rest.split(' ');
        let queue = name(words.next())?;
        let flags = words.next().ok_or(MALFORMED).and_then(number)?;
        let flags = u32::try_from(flags).map_err(|_| "CLIENT_ERROR flags have 32 bits")?;
        let expiry = expiry(words.next().ok_or(MALFORMED)?)?;
        let bytes = words.next().ok_or(MALFORMED).and_then(number)?;
        let quiet = quiet(words)?;
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        if len > self.value_max {
            (self.skip, self.skip_end) = (bytes, true);
            return Ok(Some((Request::TooLarge(quiet), 0)));
        }
        let Some((data, after)) = after.split_at_checked(len) else {
            return Ok(None);
        };
        let end = line_end(after)?;
        Ok(end.map(|end| (Request::Set(Set { queue, flags, expiry, data, quiet }), len + end)))
    }
}

/// All commands but those of the hot path.
fn other<'a>(command: &[u8], rest: &'a str) -> Parsed<Request<'a>> {
    let mut words = rest.split(' ').filter(|_| !rest.is_empty());
    let request = match command {
        b"monitor" => {
            let queue = name(words.next())?;
            let seconds = words.next().ok_or(MALFORMED).and_then(number)?;
            let most = words.next().map_or(Ok(u64::MAX), number)?;
            Request::Monitor(queue, seconds, usize::try_from(most).unwrap_or(usize::MAX))
        }
        b"confirm" => {
            let queue = name(words.next())?;
            let count = words.next().ok_or(MALFORMED).and_then(number)?;
            Request::Confirm(queue, usize::try_from(count).unwrap_or(usize::MAX))
        }
        b"delete" => {
            let queue = name(words.next())?;
            // Old clients send a time of 0.
            let mut words = words.skip_while(|word| *word == "0");
            Request::Delete(queue, quiet(&mut words)?)
        }
        b"flush" => Request::Flush(name(words.next())?, quiet(&mut words)?),
        b"flush_all" => {
            let mut words = words.skip_while(|word| *word == "0");
            Request::FlushAll(quiet(&mut words)?)
        }
        b"flush_expired" => Request::FlushExpired(Some(name(words.next())?)),
        b"flush_all_expired" => Request::FlushExpired(None),
        // Of memcached's kinds of statistics there is one.
        b"stats" => Request::Stats,
        b"dump_stats" => Request::DumpStats(words.map(|word| name(Some(word))).collect::<Parsed<_>>()?),
        b"dump_config" => Request::DumpConfig(words.map(|word| name(Some(word))).collect::<Parsed<_>>()?),
        b"reload" => Request::Reload,
        b"status" => Request::Status(words.next().map(state).transpose()?),
        b"version" => Request::Version,
        b"mn" => Request::Nothing,
        b"quit" => Request::Quit,
        b"shutdown" => Request::Shutdown,
        _ => return Err("CLIENT_ERROR unknown command"),
    };
    Ok(request)
}

fn name(word: Option<&str>) -> Parsed<&str> {
    match word {
        None | Some("") => Err("CLIENT_ERROR no queue named"),
        Some(name) if name.len() > KEY_MAX => Err("CLIENT_ERROR key too long"),
        Some(name) => Ok(name),
    }
}

fn quiet<'a>(mut words: impl Iterator<Item = &'a str>) -> Parsed<bool> {
    match (words.next(), words.next()) {
        (None, _) => Ok(false),
        (Some(word), None) if word.eq_ignore_ascii_case("noreply") => Ok(true),
        _ => Err(MALFORMED),
    }
}

/// Digits and nothing else: `parse` would take a sign.
fn number(word: &str) -> Parsed<u64> {
    if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("CLIENT_ERROR bad number");
    }
    word.parse().map_err(|_| "CLIENT_ERROR bad number")
}

fn expiry(word: &str) -> Parsed<Expiry> {
    if let Some(past) = word.strip_prefix('-') {
        return number(past).map(|seconds| if seconds == 0 { Expiry::Never } else { Expiry::Gone });
    }
    Ok(match number(word)? {
        0 => Expiry::Never,
        seconds if seconds < 1_000_000 => Expiry::In(seconds),
        seconds => Expiry::At(seconds),
    })
}

fn state(word: &str) -> Parsed<State> {
    match word.to_ascii_lowercase().as_str() {
        "up" => Ok(State::Up),
        "readonly" => Ok(State::ReadOnly),
        "quiescent" => Ok(State::Quiescent),
        _ => Err("CLIENT_ERROR unknown status"),
    }
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
