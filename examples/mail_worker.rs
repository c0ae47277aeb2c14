//! Sends mails in the background, over a mail server that fails on purpose.
//!
//! Each mail is a job; four threads send them in real SMTP conversations. The server is this program's own, on 127.0.0.1, and
//! treats a mail as the name of its receiver says:
//!
//! | receiver | the server | what becomes of the job | received |
//! |---|---|---|---|
//! | `ada` | takes the mail | done at the first attempt | once |
//! | `grey` | says `451 try again` twice, then takes it | two retries, then done | once |
//! | `slow` | says nothing at first, takes it the next time | one attempt over its time, then done | once |
//! | `echo` | takes it and hangs up before it says so | one retry, then done | twice, with the same `Message-ID` |
//! | `full` | says `452 mailbox full` each time | dead after its last attempt | never |
//! | `nobody` | says `550 no such user` | rejected: dead at once | never |
//!
//! `echo` is why delivery is *at least* once: nobody can tell a lost answer from a lost mail. The job's id is the mail's
//! `Message-ID`, so that who receives it twice can tell; a server of one's own would drop the second one by it.
//!
//! `cargo run --example mail_worker --features jobs,postcard`. Exit code 1: a mail was received more or less often than the table
//! says, or altered, or a job did not end as it says.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kestrel_core::jobs::{Backoff, Cause, Ctx, DeadReason, Fail, Filter, Job, JobOptions, JobState, Jobs, Outcome};
use kestrel_core::{Postcard, QueueSet};
use serde::{Deserialize, Serialize};

type Any<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Receivers, and how many mails each of them is sent.
const RECEIVERS: [(&str, usize); 6] = [("ada", 40), ("grey", 8), ("slow", 4), ("echo", 6), ("full", 5), ("nobody", 7)];
const ATTEMPTS_MAX: u32 = 4;

#[derive(Serialize, Deserialize)]
struct Mail {
    to: String,
    text: String,
}

impl Job for Mail {
    const KIND: &'static str = "mail";
    type Codec = Postcard;

    fn options() -> JobOptions {
        // A mailer for people would keep the default: pauses from a second to an hour, twenty attempts.
        JobOptions::default()
            .queue("mail")
            .max_attempts(ATTEMPTS_MAX)
            .backoff(Backoff::Fixed(Duration::from_millis(50)))
            .timeout(Duration::from_millis(500))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            complaints.iter().for_each(|complaint| println!("WRONG: {complaint}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("mail_worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Any<Vec<String>> {
    let server = Server::start()?;
    let address = server.address;
    let dir = tempfile::tempdir()?;
    let set = QueueSet::open(dir.path())?;
    let jobs = Jobs::new(&set)?;
    let worker = jobs.worker().threads(4).on(move |ctx, mail: Mail| send(ctx, address, &mail)).start()?;

    let mut pushed = Vec::new();
    for (name, count) in RECEIVERS {
        for n in 0..count {
            let to = format!("{name}.{n}@example.org");
            // A line of a single dot would end the mail if the client did not mask it.
            let mail = Mail { text: format!("Dear {name},\r\n.\r\n..this is mail {n}.\r\n"), to };
            let id = jobs.push(&mail)?.id;
            pushed.push((id, name, mail));
        }
    }
    println!("{} mails pushed, server at {address}", pushed.len());

    let mut complaints = Vec::new();
    for (n, (id, name, mail)) in pushed.iter().enumerate() {
        progress(n, pushed.len());
        let Some(outcome) = jobs.wait(*id, Duration::from_secs(60)) else {
            complaints.push(format!("the mail to {} is not sent after a minute", mail.to));
            continue;
        };
        let (is_expected, times) = match *name {
            "full" => (matches!(outcome, Outcome::Dead { reason: DeadReason::Attempts, .. }), 0),
            "nobody" => (matches!(outcome, Outcome::Dead { reason: DeadReason::Rejected, .. }), 0),
            "echo" => (matches!(outcome, Outcome::Done(_) | Outcome::Finished), 2),
            _ => (matches!(outcome, Outcome::Done(_) | Outcome::Finished), 1),
        };
        if !is_expected {
            complaints.push(format!("the mail to {} ended as {outcome:?}", mail.to));
        }
        let received = server.received(&mail.to);
        let wanted = vec![(format!("<{id}@example.org>"), mail.text.clone()); times];
        if received != wanted {
            complaints.push(format!("{} received {received:?}, not {wanted:?}", mail.to));
        }
    }
    progress(pushed.len(), pushed.len());
    let left = worker.shutdown(Duration::from_secs(5));
    if left.returned > 0 {
        complaints.push(format!("{} jobs still ran at the end", left.returned));
    }
    println!("dead letters:");
    let mut dead = BTreeMap::new();
    for job in jobs.list(&Filter::new().state(JobState::Dead)) {
        let job = job?;
        let last = job.failures.last().map_or("", |failure| &failure.error);
        println!("  {} {}: {:?} after {} attempts: {last}", job.queue, job.id, job.dead, job.attempts);
        *dead.entry(job.attempts).or_insert(0) += 1;
        if job.failures.iter().any(|failure| failure.cause != Cause::Error) {
            complaints.push(format!("job {} failed for another cause: {:?}", job.id, job.failures));
        }
    }
    if dead != BTreeMap::from([(1, 7), (ATTEMPTS_MAX, 5)]) {
        complaints.push(format!("dead letters by their attempts: {dead:?}"));
    }
    let stats = jobs.stats();
    let mail = stats.queues.get("mail").cloned().unwrap_or_default();
    println!("{} starts: {} mails sent, {} attempts failed, {} dead", mail.started, mail.done, mail.failed, mail.died);
    // 40 + 8·3 + 4·2 + 6·2 + 5·4 + 7
    if (mail.started, mail.done, mail.died) != (111, 58, 12) {
        complaints.push("not 111 starts, 58 mails sent and 12 dead".into());
    }
    set.close()?;
    Ok(complaints)
}

fn progress(done: usize, of: usize) {
    if io::stderr().is_terminal() {
        eprint!("\r{done} of {of} mails{}", if done == of { "\n" } else { "" });
    }
}

/// The handler. What the server calls permanent is rejected; all else is tried again.
fn send(ctx: &Ctx, server: SocketAddr, mail: &Mail) -> Result<(), Fail> {
    match converse(ctx, server, mail) {
        Err(Refused::Permanent(answer)) => Err(Fail::reject(answer)),
        Err(Refused::Temporary(answer)) => Err(Fail::retry(answer)),
        Err(Refused::Broken(error)) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

enum Refused {
    Permanent(String),
    Temporary(String),
    Broken(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Broken(error)
    }
}

fn converse(ctx: &Ctx, server: SocketAddr, mail: &Mail) -> Result<(), Refused> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    answer(ctx, &mut lines)?;
    let mut say = |line: &str| {
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        answer(ctx, &mut lines)
    };
    say("EHLO client.example.org")?;
    say("MAIL FROM:<worker@example.org>")?;
    say(&format!("RCPT TO:<{}>", mail.to))?;
    say("DATA")?;
    let masked: String = mail
        .text
        .split_inclusive("\r\n")
        .flat_map(|line| if line.starts_with('.') { [".", line] } else { ["", line] })
        .collect();
    say(&format!("Message-ID: <{}@example.org>\r\n\r\n{masked}.", ctx.id()))?;
    // The mail is the server's now: that it says goodbye is not worth a second mail.
    let _ = say("QUIT");
    Ok(())
}

/// Reads an answer of the server, all its lines. A thread cannot be interrupted, so it looks up now and then whether its time is
/// over.
fn answer(ctx: &Ctx, lines: &mut impl BufRead) -> Result<(), Refused> {
    let mut line = String::new();
    loop {
        match lines.read_line(&mut line) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) if line.as_bytes().get(3) == Some(&b'-') => line.clear(),
            Ok(_) => break,
            // What came before the pause is in `line` already.
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => {
                if ctx.is_cancelled() {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    match line.as_bytes()[0] {
        b'2' | b'3' => Ok(()),
        b'4' => Err(Refused::Temporary(line.trim_end().to_owned())),
        _ => Err(Refused::Permanent(line.trim_end().to_owned())),
    }
}

/// Mailboxes by receiver: in each, `Message-ID` and text of what was received.
#[derive(Default)]
struct Mailboxes {
    received: BTreeMap<String, Vec<(String, String)>>,
    /// How often each receiver was named in a conversation.
    asked: BTreeMap<String, u32>,
}

struct Server {
    address: SocketAddr,
    mailboxes: Arc<Mutex<Mailboxes>>,
}

impl Server {
    /// A thread for each conversation. They end with the program.
    fn start() -> io::Result<Server> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let mailboxes = Arc::<Mutex<Mailboxes>>::default();
        let shared = Arc::clone(&mailboxes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mailboxes = Arc::clone(&shared);
                // A client that hangs up is no matter here.
                std::thread::spawn(move || drop(serve(stream, &mailboxes)));
            }
        });
        Ok(Server { address, mailboxes })
    }

    fn received(&self, to: &str) -> Vec<(String, String)> {
        lock(&self.mailboxes).received.get(to).cloned().unwrap_or_default()
    }
}

fn lock(mailboxes: &Mutex<Mailboxes>) -> MutexGuard<'_, Mailboxes> {
    mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: TcpStream, mailboxes: &Mutex<Mailboxes>) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut to, mut asked) = (String::new(), 0);
    stream.write_all(b"220 mail.example.org\r\n")?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        let answer = if let Some(receiver) = line.strip_prefix("RCPT TO:<").and_then(|rest| rest.strip_suffix('>')) {
            to = receiver.to_owned();
            asked = {
                let mut mailboxes = lock(mailboxes);
                let asked = mailboxes.asked.entry(to.clone()).or_default();
                *asked += 1;
                *asked
            };
            match to.split('.').next() {
                Some("grey") if asked <= 2 => "451 try again later",
                Some("full") => "452 mailbox full",
                Some("nobody") => "550 no such user",
                Some("slow") if asked == 1 => {
                    // Until the client has lost its patience.
                    lines.read_to_string(&mut String::new())?;
                    return Ok(());
                }
                _ => "250 ok",
            }
        } else if line == "DATA" {
            stream.write_all(b"354 end with a line of one dot\r\n")?;
            let mail = read_mail(&mut lines)?;
            lock(mailboxes).received.entry(to.clone()).or_default().push(mail);
            if to.starts_with("echo") && asked == 1 {
                return Ok(());
            }
            "250 received"
        } else if line == "QUIT" {
            return stream.write_all(b"221 bye\r\n");
        } else if line.starts_with("EHLO ") {
            "250-mail.example.org\r\n250 8BITMIME"
        } else if line.starts_with("MAIL FROM:<") {
            "250 ok"
        } else {
            "500 not understood"
        };
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// `Message-ID` and text.
fn read_mail(lines: &mut impl BufRead) -> io::Result<(String, String)> {
    let (mut id, mut text, mut is_head) = (String::new(), String::new(), true);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.strip_prefix('.') {
            Some("\r\n") => return Ok((id, text)),
            Some(masked) => text.push_str(masked),
            None if is_head && line == "\r\n" => is_head = false,
            None if is_head => id = line.trim_start_matches("Message-ID:").trim().to_owned(),
            None => text.push_str(&line),
        }
    }
}
