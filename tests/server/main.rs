//! The example server through its sockets: Kestrel's cases on the wire, and what a broken client may do.

#[allow(dead_code)]
#[path = "../../examples/memcache_server/server/mod.rs"]
mod server;

mod parser;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use server::{Config, Running, protocol};
use tempfile::TempDir;
use tokio::runtime::Runtime;

struct Server {
    runtime: Runtime,
    running: Option<Running>,
    address: SocketAddr,
    dir: TempDir,
}

impl Server {
    fn start() -> Server {
        Server::with("")
    }

    /// A server on a port of the system's choice, with these settings.
    fn with(settings: &str) -> Server {
        Server::on(tempfile::tempdir().expect("a directory"), settings)
    }

    fn on(dir: TempDir, settings: &str) -> Server {
        let path = dir.path().join("settings.toml");
        write_settings(&path, settings);
        let mut config = Config::read(&path).expect("settings");
        config.data = dir.path().join("data");
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let starting = runtime.spawn(Running::start(config));
        let running = runtime.block_on(starting).expect("no panic").expect("started");
        let address = running.address;
        Server { runtime, running: Some(running), address, dir }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("connected");
        // A test that would hang fails instead.
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        stream.set_nodelay(true).expect("set");
        Client { reader: BufReader::new(stream) }
    }

    /// A number of `stats`.
    fn stat(&self, name: &str) -> Option<u64> {
        let mut client = self.client();
        client.send("stats\r\n");
        loop {
            let line = client.line();
            if line == "END" {
                return None;
            }
            if let Some((found, value)) = line.trim_start_matches("STAT ").split_once(' ')
                && found == name
            {
                return value.parse().ok();
            }
        }
    }

    /// Waits until a number has this value.
    fn until(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.stat(name) != Some(value) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name} is {:?}, not {value}", self.stat(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(mut self) -> TempDir {
        self.end();
        let other = tempfile::tempdir().expect("a directory");
        std::mem::replace(&mut self.dir, other)
    }

    fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.server.stop();
            let finishing = self.runtime.spawn(running.finish());
            self.runtime.block_on(finishing).expect("no panic").expect("closed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn write_settings(path: &Path, settings: &str) {
    std::fs::write(path, settings).expect("written");
}

struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        assert!(line.ends_with("\r\n"), "{line:?}");
        line.trim_end().to_owned()
    }

    fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let mut got = vec![0; expected.len()];
        let mut filled = 0;
        while filled < got.len() {
            match self.reader.read(&mut got[filled..]).expect("a reply") {
                0 => break,
                read => filled += read,
            }
        }
        assert_eq!(String::from_utf8_lossy(&got[..filled]), String::from_utf8_lossy(expected));
    }

    /// Sends, and expects this answer.
    fn ask(&mut self, request: impl AsRef<[u8]>, answer: impl AsRef<[u8]>) {
        self.send(request);
        self.expect(answer);
    }

    fn put(&mut self, queue: &str, data: &str) {
        self.ask(format!("set {queue} 0 0 {}\r\n{data}\r\n", data.len()), "STORED\r\n");
    }

    /// Nothing more comes, and the connection is closed, in good order.
    fn closed(mut self) {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an orderly end");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// A line that begins like this, then the end of the connection.
    fn fails(mut self, request: impl AsRef<[u8]>, beginning: &str) {
        self.send(request);
        let line = self.line();
        assert!(line.starts_with(beginning), "{line:?}");
        self.closed();
    }
}

fn values(key: &str, all: &[&str]) -> String {
    let each = |data: &&str| format!("VALUE {key} 0 {}\r\n{data}\r\n", data.len());
    all.iter().map(each).collect::<String>() + "END\r\n"
}

#[test]
fn k168_close_and_open_in_one_request_ends_the_read_before() {
    let server = Server::start();
    let mut client = server.client();
    for data in ["one", "two", "three"] {
        client.put("q", data);
    }
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    client.ask("get q/close/open\r\n", values("q/close/open", &["two"]));
    client.ask("get q/close/open\r\n", values("q/close/open", &["three"]));
    drop(client);
    let mut other = server.client();
    other.ask("get q/t=20000\r\n", values("q/t=20000", &["three"]));
    other.ask("get q\r\n", "END\r\n");
}

#[test]
fn k169_a_plain_get_with_an_open_read_ends_the_connection() {
    let server = Server::start();
    let mut client = server.client();
    client.put("q", "one");
    client.put("other", "else");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    client.ask("get other\r\n", values("other", &["else"]));
    client.fails("get q\r\n", "ERROR");
    server.client().ask("get q/t=20000\r\n", values("q/t=20000", &["one"]));
}

#[test]
fn k169_more_open_reads_than_allowed_end_the_connection() {
    let server = Server::with("max_open_reads = 2\n");
    let mut client = server.client();
    for data in ["1", "2", "3"] {
        client.put("q", data);
    }
    client.ask("get q/open\r\nget q/open\r\n", values("q/open", &["1"]) + &values("q/open", &["2"]));
    client.fails("get q/open\r\n", "ERROR");
    server.until("queue_q_items", 3);
    server.client().ask("get q\r\n", values("q", &["1"]));
}

#[test]
fn k170_options_come_in_any_order_and_unknown_ones_are_ignored() {
    let server = Server::start();
    let mut client = server.client();
    client.put("q", "one");
    for key in ["q/open/t=100", "q/t=100/open", "q/open/t=5/t=100", "q/frob/open"] {
        client.ask(format!("get {key}\r\n"), values(key, &["one"]));
        client.ask("get q/abort\r\n", "END\r\n");
    }
    client.ask("get q/frob\r\n", values("q/frob", &["one"]));
    // The last t counts: this would wait for longer than the test's patience.
    client.ask("get q/t=3600000/t=1\r\n", "END\r\n");
    client.ask("get q/close\r\nget q/abort\r\nget q/close/t=1/open\r\n", "END\r\nEND\r\nEND\r\n");
}

#[test]
fn k171_contradictions_and_empty_keys_are_refused() {
    let server = Server::start();
    for request in [
        "get q/peek/open\r\n",
        "get q/open/peek\r\n",
        "get q/peek/close\r\n",
        "get q/peek/abort\r\n",
        "get q/abort/close\r\n",
        "get q/abort/open\r\n",
        "get /open\r\n",
        "get \r\n",
        "get\r\n",
        "get  q\r\n",
        "get q  r\r\n",
        "get q/t=x\r\n",
        "get q/t=-1\r\n",
        "get q/t=99999999999999999999\r\n",
    ] {
        server.client().fails(request, "CLIENT_ERROR");
    }
    let mut client = server.client();
    client.put("q", "one");
    client.put("q", "two");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    client.ask("get q/peek\r\n", values("q/peek", &["two"]));
    client.ask("get q/peek \r\n", values("q/peek", &["two"]));
}

#[test]
fn k173_monitor_stops_at_the_open_reads_allowed() {
    let server = Server::with("max_open_reads = 3\n");
    let mut client = server.client();
    for data in ["1", "2", "3", "4", "5"] {
        client.put("q", data);
    }
    client.ask("monitor q 30 2\r\n", values("q", &["1", "2"]));
    client.ask("monitor q 30\r\n", values("q", &["3"]));
    client.ask("monitor q 30\r\n", "END\r\n");
    client.send("confirm q 4\r\n");
    assert!(client.line().starts_with("ERROR"));
    assert_eq!((server.stat("queue_q_open_transactions"), server.stat("queue_q_items")), (Some(3), Some(2)));
    client.ask("confirm q 2\r\n", "END\r\n");
    client.ask("confirm q 0\r\n", "END\r\n");
    client.ask("get q/abort\r\n", "END\r\n");
    client.ask("get q\r\nget q\r\nget q\r\n", values("q", &["3"]) + &values("q", &["4"]) + &values("q", &["5"]));
}

#[test]
fn k173_monitor_waits_for_what_comes() {
    let server = Server::with("max_open_reads = 10\n");
    let mut client = server.client();
    client.send("monitor q 3600 2\r\n");
    server.until("queue_q_waiters", 1);
    server.client().put("q", "one");
    client.expect("VALUE q 0 3\r\none\r\n");
    server.client().put("q", "two");
    client.expect("VALUE q 0 3\r\ntwo\r\nEND\r\n");
    client.ask("monitor q 0\r\n", "END\r\n");
}

#[test]
fn k176_times_of_expiry() {
    let server = Server::start();
    let mut client = server.client();
    let soon = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() + 3600;
    let set = |time: &str| format!("set q 0 {time} 1\r\nx\r\n");
    for time in ["0", "999999", &soon.to_string(), "2147483648", "18446744073709551615", "3600"] {
        client.ask(set(time), "STORED\r\n");
        client.ask("get q\r\n", values("q", &["x"]));
    }
    for time in ["-1", "-99999999999", "1000000"] {
        client.ask(set(time), "STORED\r\n");
        client.ask("get q\r\n", "END\r\n");
    }
    assert_eq!(server.stat("queue_q_expired_items"), Some(3));
    client.ask(set("1"), "STORED\r\n");
    client.ask("get q/peek\r\n", values("q/peek", &["x"]));
    server.until("queue_q_expired_items", 4);
    for time in ["x", "", "1.5", "+1", "99999999999999999999"] {
        server.client().fails(set(time), "CLIENT_ERROR");
    }
    client.ask("get q\r\n", "END\r\n");
}

#[test]
fn k177_the_data_of_an_unknown_command_is_not_run() {
    let server = Server::start();
    server.client().put("q", "one");
    server.client().fails("add q 0 0 8\r\ndelete q\r\nflush_all\r\n", "CLIENT_ERROR");
    server.client().fails("incr q 1\r\n", "CLIENT_ERROR");
    // More than one read takes: what stays unread must not take the answer with it.
    server.client().fails(format!("add q 0 0 200000\r\n{}\r\n", "x".repeat(200_000)), "CLIENT_ERROR");
    server.client().ask("get q\r\n", values("q", &["one"]));
}

#[test]
fn k178_a_client_that_vanishes_leaves_the_line() {
    let server = Server::start();
    for request in ["get q/t=3600000\r\n".to_owned(), "get q/open/t=3600000\r\n".into(), "monitor q 3600\r\n".into()] {
        let mut client = server.client();
        client.send(&request);
        server.until("queue_q_waiters", 1);
        drop(client);
        server.until("queue_q_waiters", 0);
    }
    // Also one that had sent more than is read ahead.
    let mut client = server.client();
    client.send("get q/t=3600000\r\n");
    server.until("queue_q_waiters", 1);
    client.send("version\r\n".repeat(10_000));
    drop(client);
    server.until("queue_q_waiters", 0);
    server.client().put("q", "one");
    server.client().ask("get q\r\n", values("q", &["one"]));
}

#[test]
fn wire_what_arrives_during_a_wait_is_answered_after_it() {
    let server = Server::start();
    let mut client = server.client();
    client.send("get q/t=3600000\r\n");
    server.until("queue_q_waiters", 1);
    client.send("version\r\nget q/t=36");
    client.send("00000\r\n");
    server.client().put("q", "one");
    client.expect(values("q/t=3600000", &["one"]));
    assert!(client.line().starts_with("VERSION "));
    server.until("queue_q_waiters", 1);
    server.client().put("q", "two");
    client.expect(values("q/t=3600000", &["two"]));
}

#[test]
fn wire_flags_ids_noreply_and_case() {
    let server = Server::start();
    let mut client = server.client();
    client.ask("SET q 4294967295 0 3\r\na\r\n\r\n", "STORED\r\n");
    client.ask("Gets q\r\n", "VALUE q 4294967295 3 1\r\na\r\n\r\nEND\r\n");
    client.ask(
        "set q 0 0 1 noreply\r\nx\r\ndelete other noreply\r\nflush other noreply\r\nflush_all noreply\r\nmn\r\n",
        "MN\r\n",
    );
    client.ask("get q\n", "END\r\n");
    client.ask("set q 0 0 0\n\nset q 0 0 2\nok\n", "STORED\r\nSTORED\r\n");
    client.ask("get q \r\nget q\r\n", values("q", &[""]) + &values("q", &["ok"]));
    client.ask("flush_all 0\r\n", "OK\r\n");
    assert!(server.client().line_of("version\r\n").starts_with("VERSION 2."));
    server.client().fails("set q 4294967296 0 1\r\nx\r\n", "CLIENT_ERROR");
}

impl Client {
    fn line_of(mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }
}

#[test]
fn wire_many_keys_are_many_queues() {
    let server = Server::start();
    let mut client = server.client();
    client.put("a", "1");
    client.put("c", "3");
    client.ask("get a b c\r\n", "VALUE a 0 1\r\n1\r\nVALUE c 0 1\r\n3\r\nEND\r\n");
    // A get that does not wait creates nothing.
    assert_eq!((server.stat("queues"), server.stat("queue_b_items")), (Some(2), None));
}

#[test]
fn wire_all_bytes_come_back_however_they_are_cut() {
    let server = Server::start();
    let mut client = server.client();
    let data: Vec<u8> = (0..=255).chain(*b"\r\nEND\r\nset q 0 0 1\r\n").collect();
    let mut request = format!("set q 0 0 {}\r\n", data.len()).into_bytes();
    request.extend_from_slice(&data);
    request.extend_from_slice(b"\r\nget q\r\n");
    for byte in request {
        client.send([byte]);
    }
    client.expect(format!("STORED\r\nVALUE q 0 {}\r\n", data.len()));
    client.expect(&data);
    client.expect("\r\nEND\r\n");
}

#[test]
fn wire_a_pipeline_is_answered_in_order() {
    for durability in ["\"sync\"", "\"os\"", "50"] {
        let server = Server::with(&format!("[defaults]\ndurability = {durability}\n"));
        let mut client = server.client();
        let (mut requests, mut answers) = (String::new(), String::new());
        for n in 0..300 {
            requests += &format!("set q 0 0 3\r\n{n:03}\r\n");
            answers += "STORED\r\n";
        }
        for n in 0..300 {
            requests += "get q\r\n";
            answers += &values("q", &[&format!("{n:03}")]);
        }
        client.ask(requests + "get q\r\n", answers + "END\r\n");
        // They are closed once their reply has been written.
        server.until("queue_q_open_transactions", 0);
    }
}

#[test]
fn wire_full_queues_and_large_items() {
    let server = Server::with("[queues.small]\nmax_items = 1\n[queues.tiny]\nmax_item_size = 2\n");
    let mut client = server.client();
    client.put("small", "x");
    client.ask("set small 0 0 1\r\ny\r\n", "NOT_STORED\r\n");
    let too_large = "SERVER_ERROR object too large for cache\r\n";
    client.ask("set tiny 0 0 3\r\nabc\r\n", too_large);
    // Beyond what any queue takes: skipped unread.
    let large = "x".repeat(3 << 20);
    client.ask(format!("set q 0 0 {}\r\n{large}\r\n", large.len()), too_large);
    client.send(format!("set q 0 0 {} noreply\r\n{large}\r\n", large.len()));
    client.ask("get q small\r\n", values("small", &["x"]));
    let fits = "y".repeat(1 << 20);
    client.put("q", &fits);
    client.ask("get q\r\n", values("q", &[&fits]));
}

#[test]
fn bad_lines_are_told_and_end_the_connection_and_nothing_else() {
    let server = Server::start();
    let mut bystander = server.client();
    bystander.put("q", "one");
    let long_key = "k".repeat(251);
    for request in [
        "\r\n".to_owned(),
        "hello\r\n".into(),
        "set\r\n".into(),
        "set q\r\n".into(),
        "set q 0 0\r\n".into(),
        "set q 0 0 -1\r\nx\r\n".into(),
        "set q 0 0 x\r\nx\r\n".into(),
        "set q -1 0 1\r\nx\r\n".into(),
        "set q 0 0 1 norepl\r\nx\r\n".into(),
        "set q 0 0 1 noreply now\r\nx\r\n".into(),
        "set  q 0 0 1\r\nx\r\n".into(),
        "set q 0 0 99999999999999999999999\r\nx\r\n".into(),
        "set q 0 0 1\r\nxy\r\n".into(),
        "set q 0 0 3\r\nx\r\nget q\r\n".into(),
        format!("set {long_key} 0 0 1\r\nx\r\n"),
        format!("get {long_key}\r\n"),
        format!("get {}\r\n", "k ".repeat(2000)),
        "x".repeat(3000),
        "monitor q\r\n".into(),
        "monitor q -1\r\n".into(),
        "confirm q\r\n".into(),
        "confirm q x\r\n".into(),
        "delete\r\n".into(),
        "delete q 5\r\n".into(),
        "flush\r\n".into(),
        "flush_all 10\r\n".into(),
        "status sideways\r\n".into(),
    ] {
        server.client().fails(&request, "CLIENT_ERROR");
    }
    server.client().fails(b"get \xff\xfe\r\n", "CLIENT_ERROR");
    bystander.ask("get q\r\n", values("q", &["one"]));
    bystander.ask("get q\r\n", "END\r\n");
}

#[test]
fn bad_names_are_told_and_the_connection_goes_on() {
    let server = Server::start();
    let mut client = server.client();
    for request in ["set a/b 0 0 1\r\nx\r\n".to_owned(), format!("set {} 0 0 1\r\nx\r\n", "k".repeat(201))] {
        client.send(&request);
        let line = client.line();
        assert!(line.contains("_ERROR "), "{line:?}");
    }
    client.ask("mn\r\n", "MN\r\n");
    assert_eq!(server.stat("queues"), Some(0));
}

#[test]
fn half_a_request_and_half_a_connection() {
    let server = Server::start();
    // The end of what the client sends does not take its answer away.
    let mut client = server.client();
    client.send("set q 0 0 3\r\none\r\nget q/peek\r\n");
    client.reader.get_ref().shutdown(Shutdown::Write).expect("shut");
    client.expect("STORED\r\n".to_owned() + &values("q/peek", &["one"]));
    client.closed();
    for half in ["set q 0 0 3\r\ntw", "set q 0 0 3\r\ntwo", "set q 0 0 3\r\ntwo\r", "set q 0 0 3", "get q"] {
        let mut client = server.client();
        client.send(half);
        client.reader.get_ref().shutdown(Shutdown::Write).expect("shut");
        client.closed();
    }
    server.client().ask("get q\r\nget q\r\n", values("q", &["one"]) + "END\r\n");
}

#[test]
fn binary_clients_are_told_in_their_own_words() {
    let server = Server::start();
    let mut client = server.client();
    let mut request = [0; 24];
    (request[0], request[1], request[12]) = (0x80, 0x0a, 7);
    client.send(request);
    let mut reply = [0; 24];
    client.reader.read_exact(&mut reply).expect("a reply");
    assert_eq!((reply[0], reply[1], reply[7], reply[12]), (0x81, 0x0a, 0x81, 7));
    client.closed();
}

#[test]
fn delete_and_flush_reach_who_waits_and_who_remembers() {
    let server = Server::start();
    let (mut client, mut other) = (server.client(), server.client());
    client.put("q", "one");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    other.send("get q/t=3600000\r\n");
    server.until("queue_q_waiters", 1);
    server.client().ask("delete q\r\n", "DELETED\r\n");
    other.expect("END\r\n");
    assert_eq!(server.stat("queues"), Some(0));
    // The first client still has the deleted queue in mind.
    client.put("q", "two");
    client.ask("get q/close/open\r\n", "SERVER_ERROR the queue is closed\r\n");
    client.ask("get q/open\r\n", values("q/open", &["two"]));
    other.ask("get q\r\n", "END\r\n");
    other.put("q", "three");
    other.ask("flush q\r\nget q\r\n", "END\r\nEND\r\n");
    other.put("r", "four");
    other.ask("flush_all\r\nget r\r\n", "OK\r\nEND\r\n");
    client.ask("delete missing\r\nflush missing\r\nflush_expired missing\r\n", "DELETED\r\nEND\r\n0\r\n");
    client.ask("dump_stats missing\r\n", "END\r\n");
    assert_eq!(server.stat("queues"), Some(2));
}

#[test]
fn expired_items_are_counted_when_flushed() {
    let server = Server::start();
    let mut client = server.client();
    // The head lives, so that what has expired behind it is met by nobody else.
    client.put("q", "alive");
    client.ask("set q 0 -1 1\r\nx\r\nset r 0 -1 1\r\nx\r\n", "STORED\r\nSTORED\r\n");
    client.ask("get q\r\nget q\r\n", values("q", &["alive"]) + "END\r\n");
    client.send("flush_expired q\r\nflush_all_expired\r\n");
    let told: u64 = client.line().parse::<u64>().expect("a number") + client.line().parse::<u64>().expect("a number");
    assert!(told <= 1, "{told}: the get has met the one in q");
    server.until("queue_r_expired_items", 1);
}

#[test]
fn status_refuses_and_open_reads_can_still_be_ended() {
    let server = Server::start();
    let mut client = server.client();
    client.put("q", "one");
    client.put("q", "two");
    client.ask("status\r\n", "UP\r\n");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    client.ask("status readonly\r\nstatus\r\n", "END\r\nREADONLY\r\n");
    for request in ["set q 0 0 1\r\nx\r\n", "delete q\r\n", "flush q\r\n", "flush_all\r\n"] {
        server.client().fails(request, "SERVER_ERROR");
    }
    server.client().ask("get q/peek\r\n", values("q/peek", &["two"]));
    client.ask("status QUIESCENT\r\nstatus\r\n", "END\r\nQUIESCENT\r\n");
    for request in ["get q\r\n", "get q/open\r\n", "get q/peek\r\n", "monitor q 1\r\n"] {
        server.client().fails(request, "SERVER_ERROR");
    }
    client.ask("get q/close\r\n", "END\r\n");
    client.ask("status up\r\nget q\r\nget q\r\n", "END\r\n".to_owned() + &values("q", &["two"]) + "END\r\n");
}

#[test]
fn reload_changes_all_or_nothing() {
    let server = Server::with("[defaults]\nmax_items = 5\n[queues.own]\nmax_items = 7\n");
    let path = server.dir.path().join("settings.toml");
    let mut client = server.client();
    client.put("q", "one");
    let max_items = |client: &mut Client, queue: &str| -> String {
        client.send(format!("dump_config {queue}\r\n"));
        assert_eq!(client.line(), format!("queue '{queue}' {{"));
        let lines: Vec<String> = std::iter::repeat_with(|| client.line()).take_while(|line| line != "END").collect();
        lines.iter().find(|line| line.starts_with("  max_items=")).expect("shown").trim().to_owned()
    };
    assert_eq!(
        (max_items(&mut client, "q"), max_items(&mut client, "own")),
        ("max_items=5".into(), "max_items=7".into())
    );
    for wrong in ["[defaults]\nmax_itms = 1\n", "[defaults]\nmax_items = 1\n[queues.own]\nsegment_bytes = 5\n", "x"] {
        write_settings(&path, wrong);
        client.send("reload\r\n");
        assert!(client.line().starts_with("SERVER_ERROR "));
        assert_eq!(max_items(&mut client, "q"), "max_items=5");
    }
    write_settings(&path, "[defaults]\nmax_items = 1\nmax_item_size = 4\n");
    client.ask("reload\r\n", "Reloaded config.\r\n");
    assert_eq!(
        (max_items(&mut client, "q"), max_items(&mut client, "own")),
        ("max_items=1".into(), "max_items=1".into())
    );
    client.ask("set q 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("set q 0 0 5\r\nxxxxx\r\n", "SERVER_ERROR object too large for cache\r\n");
}

#[test]
fn words_of_the_settings() {
    assert!(Config::parse("").expect("the settings of nothing said").listen.ip().is_loopback());
    let server = Server::with("bare_keys = true\nkestrel_flush_all = true\n[defaults]\njournal = false\n");
    let mut client = server.client();
    client.put("q", "one");
    client.ask("get q/open\r\n", values("q", &["one"]));
    client.ask("flush_all\r\n", "Flushed all queues.\r\n");
    assert!(Config::parse("[defaults]\nmax_attempts = 3\n").is_err());
    assert!(Config::parse("[defaults]\ndurability = \"never\"\n").is_err());
    assert!(Config::parse("listen = \"here\"\n").is_err());
}

#[test]
fn idle_and_superfluous_connections_are_closed() {
    let server = Server::with("idle_timeout_ms = 300\nmax_connections = 3\n");
    let mut client = server.client();
    client.put("q", "one");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    // Who waits for an item is not idle.
    let mut waiting = server.client();
    waiting.ask("get other/t=1500\r\n", "END\r\n");
    client.closed();
    waiting.closed();
    let full = Server::with("max_connections = 2\n");
    let (mut one, mut two) = (full.client(), full.client());
    one.ask("mn\r\n", "MN\r\n");
    two.ask("mn\r\n", "MN\r\n");
    full.client().fails("", "SERVER_ERROR too many connections");
    drop(one);
    let begun = Instant::now();
    loop {
        let mut next = full.client();
        next.send("mn\r\n");
        let mut line = String::new();
        if next.reader.read_line(&mut line).is_ok() && line == "MN\r\n" {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{line:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_stop_returns_open_reads_and_answers_who_waits() {
    let server = Server::start();
    let (mut client, mut waiting) = (server.client(), server.client());
    client.put("q", "one");
    client.put("q", "two");
    client.ask("get q/open\r\n", values("q/open", &["one"]));
    waiting.send("get empty/t=3600000\r\n");
    server.until("queue_empty_waiters", 1);
    let dir = server.stop();
    waiting.expect("END\r\n");
    waiting.closed();
    client.closed();
    let server = Server::on(dir, "");
    let mut client = server.client();
    client.ask("get q\r\nget q\r\n", values("q", &["one"]) + &values("q", &["two"]));
    // The word does the same as the signal.
    client.send("shutdown\r\n");
    client.closed();
}

#[test]
fn the_page_of_figures() {
    let server = Server::with("metrics = \"127.0.0.1:0\"\n");
    let mut client = server.client();
    client.ask("set a\"b 0 0 3\r\none\r\n", "STORED\r\n");
    let address = server.running.as_ref().and_then(|running| running.metrics).expect("an address");
    let page = |path: &str| {
        let mut stream = TcpStream::connect(address).expect("connected");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("a page");
        page
    };
    let text = page("/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for line in ["# TYPE kestrel_queue_items gauge", "kestrel_queue_items{queue=\"a\\\"b\"} 1", "kestrel_cmd_set 1"] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(page("/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn each_item_goes_to_one_client() {
    const CLIENTS: usize = 8;
    const ITEMS: usize = 400;
    let server = Server::with("[defaults]\ndurability = \"os\"\n");
    let consume = |open: bool| {
        let mut client = server.client();
        let mut got = Vec::new();
        let request = if open { "get q/close/open/t=3600000\r\n" } else { "get q/t=3600000\r\n" };
        loop {
            client.send(request);
            let head = client.line();
            let data = client.line();
            assert!(head.starts_with("VALUE "), "{head}");
            assert_eq!(client.line(), "END");
            if data == "stop" {
                client.ask("get q/close\r\n", "END\r\n");
                return got;
            }
            got.push(data);
        }
    };
    let mut all: Vec<String> = std::thread::scope(|scope| {
        let consumers: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || consume(n % 2 == 0))).collect();
        let producers: Vec<_> = (0..2)
            .map(|producer| {
                let mut client = server.client();
                scope.spawn(move || (0..ITEMS).for_each(|n| client.put("q", &format!("{producer}-{n:04}"))))
            })
            .collect();
        producers.into_iter().for_each(|producer| producer.join().expect("no panic"));
        let mut client = server.client();
        (0..CLIENTS).for_each(|_| client.put("q", "stop"));
        consumers.into_iter().flat_map(|consumer| consumer.join().expect("no panic")).collect()
    });
    all.sort();
    let expected: Vec<String> = (0..2).flat_map(|p| (0..ITEMS).map(move |n| format!("{p}-{n:04}"))).collect();
    assert_eq!(all, expected);
}

#[test]
fn fuzz_corpus_of_the_parser_finds_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/protocol");
    let inputs: Vec<Vec<u8>> = std::fs::read_dir(corpus)
        .expect("the corpus")
        .map(|entry| std::fs::read(entry.expect("readable").path()).expect("readable"))
        .collect();
    assert!(inputs.len() > 5);
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for input in &inputs {
        parser::check(input);
        // And with a few bytes replaced.
        for _ in 0..3000 {
            let mut changed = input.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = (state >> 8) as usize % changed.len();
                changed[at] = *b"\r\n /\x800q=te\xff-".get((state >> 40) as usize % 14).unwrap_or(&(state as u8));
            }
            parser::check(&changed);
        }
    }
}

/// A target whose corpus does not get to a branch finds nothing there.
#[test]
fn fuzz_corpus_of_the_parser_gets_to_every_request_and_every_refusal() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/protocol");
    let mut found = String::new();
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("readable").path()).expect("readable");
        for request in parser::requests(&input[1..], usize::from(input[0]).max(1)) {
            found += &(request + "\n");
        }
    }
    for wanted in [
        "Set(",
        "Set(\"q\", PutOptions { expiry: At",
        "Set(\"q\", PutOptions { expiry: In",
        "]) true",
        "TooLarge",
        "Get(",
        "open: true",
        "close: true",
        "abort: true",
        "peek: true",
        "Monitor(",
        "Confirm(",
        "Binary(",
        "Other(\"delete\"",
        "Other(\"flush_all\"",
        "Other(\"stats\"",
        "Other(\"status\"",
        "malformed request",
        "key too long",
        "no queue named",
        "options exclude each other",
        "not UTF-8",
        "line too long",
        "flags have 32 bits",
        "bad number",
        "bad data chunk",
    ] {
        assert!(found.contains(wanted), "nothing in the corpus comes to {wanted}");
    }
}

/// What the clients of `tests/clients` send, where they differ, and what each of them takes for an answer.
#[test]
fn k179_the_conversations_of_real_clients() {
    let server = Server::start();
    let binary: Vec<u8> = (0..=255).collect();
    let set = |key: &str, data: &[u8], end: &str| {
        [format!("set {key} 16 0 {}{end}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
    };
    // pymemcache puts without a reply, counts the five fields of `gets`, and looks for the key that it asked for.
    let mut client = server.client();
    client.send(set("q", &binary, " noreply"));
    client.ask("gets q/open\r\n", [&b"VALUE q/open 16 256 1\r\n"[..], &binary, b"\r\nEND\r\n"].concat());
    client.ask("get q/close\r\n", "END\r\n");
    client.send("delete q noreply\r\nflush_all 0 noreply\r\n");
    client.ask("get q\r\n", "END\r\n");
    // python-memcached, Cache::Memcached and npm memcached: one reply to each, a missing key is an END.
    let mut client = server.client();
    client.ask(set("q", b"text", ""), "STORED\r\n");
    client.ask("get q\r\n", "VALUE q 16 4\r\ntext\r\nEND\r\n");
    client.ask("get missing\r\n", "END\r\n");
    client.ask("delete q\r\n", "DELETED\r\n");
    client.ask("delete q 0\r\n", "DELETED\r\n");
    client.ask("flush_all\r\n", "OK\r\n");
    // libmemcached (pylibmc, php-memcached, memccp) asks for the version first and takes digits only.
    let mut client = server.client();
    client.send("version\r\n");
    let line = client.line();
    let digits = line.strip_prefix("VERSION ").expect("that word").split('.').map(|part| part.parse::<u8>());
    assert_eq!(digits.filter(Result::is_ok).count(), 3, "{line}");
    client.ask("flush_all 0\r\n", "OK\r\n");
    // pykestrel's words, and every line of stats is a name and a value.
    let mut client = server.client();
    client.ask("flush q\r\nreload\r\n", "END\r\nReloaded config.\r\n");
    client.ask("set q 0 0 1\r\nx\r\n", "STORED\r\n");
    client.send("stats\r\n");
    let lines: Vec<String> = std::iter::repeat_with(|| client.line()).take_while(|line| line != "END").collect();
    assert!(lines.iter().all(|line| line.starts_with("STAT ") && line.split(' ').count() == 3), "{lines:?}");
    for name in ["curr_items", "bytes", "uptime", "cmd_get", "total_connections", "queue_q_items", "queue_q_age"] {
        assert!(lines.iter().any(|line| line.split(' ').nth(1) == Some(name)), "{name}");
    }
}

#[test]
fn aliases_put_to_several_queues_and_answer_gets_as_empty() {
    let server = Server::with("[aliases]\nall = [\"a\", \"b\"]\n[queues.b]\nmax_items = 1\n");
    let mut client = server.client();
    client.put("all", "one");
    client.ask("get all\r\nget all/t=1\r\nget all/peek\r\n", "END\r\nEND\r\nEND\r\n");
    client.ask("delete all\r\nflush all\r\n", "DELETED\r\nEND\r\n");
    // Where one refuses, none has it.
    client.ask("set all 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("get a\r\nget a\r\nget b\r\n", values("a", &["one"]) + "END\r\n" + &values("b", &["one"]));
    write_settings(&server.dir.path().join("settings.toml"), "[aliases]\nall = [\"c\"]\nmore = [\"all\", \"a\"]\n");
    client.ask("reload\r\n", "Reloaded config.\r\n");
    client.put("more", "two");
    client.ask("get a\r\nget b\r\nget c\r\n", values("a", &["two"]) + "END\r\n" + &values("c", &["two"]));
}

#[test]
fn every_option_of_the_library_is_a_word_of_the_settings() {
    let settings = "[defaults]\nmax_age_ms = 60000\ndurability = 250\n[queues.q]\nexpire_to = \"late\"\n\
                    max_age_ms = \"none\"\nmax_queue_age_ms = 1500\nwhen_full = \"drop_oldest\"\nlease_ms = 20\n";
    let server = Server::with(settings);
    let shown = |queue: &str| {
        let mut client = server.client();
        client.send(format!("dump_config {queue}\r\n"));
        std::iter::repeat_with(|| client.line()).take_while(|line| line != "END").collect::<Vec<_>>().join("\n")
    };
    server.client().put("other", "x");
    for (queue, line) in [
        ("q", "expire_to=late"),
        ("q", "max_age_ms=none"),
        ("q", "max_queue_age_ms=1500"),
        ("q", "lease_ms=20"),
        ("q", "when_full=drop_oldest"),
        ("q", "max_item_size=1048576"),
        ("other", "max_age_ms=60000"),
        ("other", "expire_to=none"),
    ] {
        assert!(shown(queue).lines().any(|shown| shown.trim() == line), "{queue}: {line}: {}", shown(queue));
    }
    // A put that waits would hold up all of the connection.
    assert!(Config::parse("[queues.q]\nwhen_full = \"wait\"\n").is_err());
    assert!(Config::parse("[queues.q]\nexpire_too = \"late\"\n").is_err());
    assert!(Config::parse("queues = 3\n").is_err());
}

#[test]
fn bad_negative_numbers_are_errors_wherever_a_number_stands() {
    let server = Server::start();
    server.client().put("q", "one");
    for request in [
        "set q -1 0 1\r\nx\r\n",
        "set q 0 0 -1\r\n",
        "set q 0 --1 1\r\nx\r\n",
        "set q 0 0 -0\r\n\r\n",
        "get q/t=-5\r\n",
        "monitor q -1\r\n",
        "monitor q 1 -1\r\n",
        "confirm q -1\r\n",
        "flush_all -1\r\n",
        "delete q -1\r\n",
    ] {
        server.client().fails(request, "CLIENT_ERROR");
    }
    server.client().ask("get q\r\nget q\r\n", values("q", &["one"]) + "END\r\n");
}

#[test]
fn bad_ends_of_values_store_nothing_and_run_nothing() {
    let server = Server::start();
    for (bytes, data) in [(3, "onex\r\n"), (3, "one\rget q\r\n"), (3, "o\r\nversion\r\n"), (0, "x\r\n")] {
        server.client().fails(format!("set q 0 0 {bytes}\r\n{data}"), "CLIENT_ERROR bad data chunk");
    }
    // Also behind a value that is skipped.
    let large = "x".repeat(3 << 20);
    let mut client = server.client();
    client.send(format!("set q 0 0 {}\r\n{large}xx\r\nset q 0 0 1\r\nx\r\n", large.len()));
    assert_eq!(client.line(), "SERVER_ERROR object too large for cache");
    client.fails("", "CLIENT_ERROR bad data chunk");
    assert_eq!(server.stat("queue_q_total_items"), None);
    // A key may have 250 bytes; of these options take some.
    let key = "k".repeat(200);
    let mut client = server.client();
    client.put(&key, "one");
    let long = format!("{key}/{}", "f".repeat(49));
    client.ask(format!("get {long}\r\n"), values(&long, &["one"]));
}

#[test]
fn bad_ends_of_connections_lose_no_item() {
    let server = Server::start();
    // A client that closes its half while it waits has left: it is given nothing.
    let mut client = server.client();
    client.send("get q/t=3600000\r\n");
    server.until("queue_q_waiters", 1);
    client.reader.get_ref().shutdown(Shutdown::Write).expect("shut");
    server.until("queue_q_waiters", 0);
    // One that announces more than it sends takes no memory for it, and is gone when it leaves.
    let mut client = server.client();
    client.send("set q 0 0 1048576\r\nx");
    client.send("y".repeat(1000));
    drop(client);
    // One that never reads is closed, and the items on their way to it are back.
    let slow = Server::with("idle_timeout_ms = 500\n[defaults]\ndurability = \"os\"\n");
    let data = "z".repeat(1 << 20);
    let mut producer = slow.client();
    for _ in 0..40 {
        producer.put("big", &data);
    }
    let mut client = slow.client();
    client.send("get big\r\n".repeat(40));
    // Else the connection might not have been counted yet.
    while slow.stat("cmd_get").unwrap_or(0) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    slow.until("curr_connections", 1);
    slow.until("queue_big_open_transactions", 0);
    let left = slow.stat("queue_big_items").expect("there");
    assert!(left > 0, "what the sockets hold is gone, the rest is back");
    // Each is taken whole: one whose client leaves before it has come is given again.
    let mut client = slow.client();
    for _ in 0..left {
        client.ask("get big\r\n", values("big", &[&data]));
    }
    client.ask("get big\r\n", "END\r\n");
    server.client().put("q", "one");
    server.client().ask("get q\r\n", values("q", &["one"]));
}
