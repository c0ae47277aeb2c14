//! A small client for the example server and for the servers it is measured beside: whole requests out, whole replies in.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Kestrel,
    Memcached,
    Redis,
    Beanstalkd,
}

pub(crate) struct Client {
    stream: TcpStream,
    wire: Wire,
    /// Received, and read up to `start`.
    input: Vec<u8>,
    start: usize,
    output: Vec<u8>,
}

fn broken(what: &str, line: &[u8]) -> io::Error {
    io::Error::other(format!("{what}: {}", String::from_utf8_lossy(line)))
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, wire: Wire) -> io::Result<Client> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, wire, input: Vec::new(), start: 0, output: Vec::new() })
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.input.drain(..self.start);
        self.start = 0;
        self.input.reserve(32 << 10);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let rest = &self.input[self.start..];
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = rest[..end].trim_ascii_end().to_vec();
                self.start += end + 1;
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    /// So many bytes and a line end.
    async fn data(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.input.len() - self.start < len + 2 {
            self.fill().await?;
        }
        let data = self.input[self.start..self.start + len].to_vec();
        self.start += len + 2;
        Ok(data)
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    fn write_put(&mut self, queue: &str, data: &[u8]) {
        let (out, len) = (&mut self.output, data.len());
        let head = match self.wire {
            Wire::Kestrel | Wire::Memcached => format!("set {queue} 0 0 {len}\r\n"),
            Wire::Redis => format!("*3\r\n$5\r\nRPUSH\r\n${}\r\n{queue}\r\n${len}\r\n", queue.len()),
            Wire::Beanstalkd => format!("put 0 0 3600 {len}\r\n"),
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }

    async fn read_put(&mut self) -> io::Result<()> {
        let line = self.line().await?;
        let good: &[u8] = match self.wire {
            Wire::Kestrel | Wire::Memcached => b"STORED",
            Wire::Redis => b":",
            Wire::Beanstalkd => b"INSERTED",
        };
        if line.starts_with(good) { Ok(()) } else { Err(broken("put", &line)) }
    }

    pub(crate) async fn put(&mut self, queue: &str, data: &[u8]) -> io::Result<()> {
        self.puts(queue, data, 1).await
    }

    /// So many puts on their way at a time.
    pub(crate) async fn puts(&mut self, queue: &str, data: &[u8], count: usize) -> io::Result<()> {
        (0..count).for_each(|_| self.write_put(queue, data));
        self.send().await?;
        for _ in 0..count {
            self.read_put().await?;
        }
        Ok(())
    }

    /// A get by a key with its options.
    pub(crate) async fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        self.output.extend_from_slice(format!("get {key}\r\n").as_bytes());
        self.send().await?;
        let head = self.line().await?;
        if head == b"END" {
            return Ok(None);
        }
        let data = self.data(last_number(&head)?).await?;
        match self.line().await? {
            end if end == b"END" => Ok(Some(data)),
            other => Err(broken("get", &other)),
        }
    }

    /// Ends the item given before and takes the next: a get that loses nothing when the client dies.
    pub(crate) async fn next(&mut self, queue: &str, before: &mut Option<Vec<u8>>) -> io::Result<bool> {
        match self.wire {
            Wire::Kestrel => Ok(self.get(&format!("{queue}/close/open")).await?.is_some()),
            Wire::Memcached => Ok(self.get(queue).await?.is_some()),
            Wire::Redis => {
                let held = format!("{queue}-held");
                if let Some(data) = before {
                    let head =
                        format!("*4\r\n$4\r\nLREM\r\n${}\r\n{held}\r\n$1\r\n1\r\n${}\r\n", held.len(), data.len());
                    self.output.extend_from_slice(head.as_bytes());
                    self.output.extend_from_slice(data);
                    self.output.extend_from_slice(b"\r\n");
                }
                let (from, to) = (queue.len(), held.len());
                let take = format!(
                    "*5\r\n$5\r\nLMOVE\r\n${from}\r\n{queue}\r\n${to}\r\n{held}\r\n$4\r\nLEFT\r\n$5\r\nRIGHT\r\n"
                );
                self.output.extend_from_slice(take.as_bytes());
                self.send().await?;
                if before.take().is_some() {
                    self.line().await?;
                }
                let head = self.line().await?;
                if head == b"$-1" {
                    return Ok(false);
                }
                *before = Some(self.data(last_number(&head)?).await?);
                Ok(true)
            }
            Wire::Beanstalkd => {
                if let Some(id) = before {
                    self.output.extend_from_slice(b"delete ");
                    self.output.extend_from_slice(id);
                    self.output.extend_from_slice(b"\r\n");
                }
                self.output.extend_from_slice(b"reserve-with-timeout 0\r\n");
                self.send().await?;
                if before.take().is_some() {
                    self.line().await?;
                }
                let head = self.line().await?;
                if !head.starts_with(b"RESERVED") {
                    return Ok(false);
                }
                self.data(last_number(&head)?).await?;
                *before = head.split(|&byte| byte == b' ').nth(1).map(<[u8]>::to_vec);
                Ok(true)
            }
        }
    }

    /// A command that ends with `END`.
    pub(crate) async fn command(&mut self, command: &str) -> io::Result<Vec<String>> {
        self.output.extend_from_slice(format!("{command}\r\n").as_bytes());
        self.send().await?;
        let mut lines = Vec::new();
        loop {
            match String::from_utf8_lossy(&self.line().await?).into_owned() {
                end if end == "END" => return Ok(lines),
                line => lines.push(line),
            }
        }
    }

    pub(crate) async fn quit(mut self) -> io::Result<()> {
        self.output.extend_from_slice(if self.wire == Wire::Redis { b"QUIT\r\n" } else { b"quit\r\n" });
        self.send().await?;
        while self.stream.read_buf(&mut self.input).await? > 0 {}
        Ok(())
    }
}

fn last_number(head: &[u8]) -> io::Result<usize> {
    let digits = head.rsplit(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or_else(|| broken("a length", head))
}
