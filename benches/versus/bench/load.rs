//! The items: numbered payloads, and the consumer's check of order, length, sequence and bytes.

/// Bodies that differ, so that a stale or a shifted payload is told from the right one. A batch of 100 is a multiple.
const VARIANTS: u64 = 20;
const HEAD_BYTES: usize = 16;
/// The producer number of an item that ends a consumer.
const LAST: u32 = u32::MAX;

/// splitmix64 (Steele, Lea, Flood 2014).
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn bodies(size: usize) -> Vec<Vec<u8>> {
    (0..VARIANTS)
        .map(|variant| {
            let mut seed = variant + 1;
            (0..size.div_ceil(8)).flat_map(|_| random(&mut seed).to_le_bytes()).take(size).collect()
        })
        .collect()
}

/// One producer's payloads. Its number and the item's stand in the first 16 bytes: sequence, producer, length.
pub struct Source {
    producer: u32,
    next: u64,
    payloads: Vec<Vec<u8>>,
}

impl Source {
    pub fn new(producer: u32, size: usize) -> Source {
        Source { producer, next: 0, payloads: bodies(size) }
    }

    /// The payload after the last one.
    pub fn payload(&mut self) -> &[u8] {
        let payload = &mut self.payloads[(self.next % VARIANTS) as usize];
        write_head(payload, self.next, self.producer);
        self.next += 1;
        payload
    }

    /// How many payloads there were.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// The payload that ends a consumer.
    pub fn last(&mut self) -> Vec<u8> {
        let mut payload = self.payloads[0].clone();
        write_head(&mut payload, 0, LAST);
        payload
    }
}

/// One producer's payloads, a hundred at a time.
pub struct Batches {
    source: Source,
    payloads: Vec<Vec<u8>>,
}

pub const BATCH: u64 = 100;

impl Batches {
    pub fn new(producer: u32, size: usize) -> Batches {
        let source = Source::new(producer, size);
        let payloads = (0..BATCH).map(|place| source.payloads[(place % VARIANTS) as usize].clone()).collect();
        Batches { source, payloads }
    }

    pub fn with<T>(&mut self, put: impl FnOnce(&[&[u8]]) -> T) -> T {
        for (payload, number) in self.payloads.iter_mut().zip(self.source.next..) {
            write_head(payload, number, self.source.producer);
        }
        self.source.next += BATCH;
        let mut slices = [&[][..]; BATCH as usize];
        slices.iter_mut().zip(&self.payloads).for_each(|(slice, payload)| *slice = payload);
        put(&slices)
    }

    pub fn count(&self) -> u64 {
        self.source.next
    }
}

fn write_head(payload: &mut [u8], number: u64, producer: u32) {
    let len = payload.len() as u32;
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload[8..12].copy_from_slice(&producer.to_le_bytes());
    payload[12..HEAD_BYTES].copy_from_slice(&len.to_le_bytes());
}

/// What one consumer saw. Sees all: the first thing wrong is kept.
pub struct Check {
    size: usize,
    bodies: Vec<Vec<u8>>,
    /// By producer: the least number that may come next.
    next: Vec<u64>,
    /// By producer, where there are several consumers: the numbers seen.
    seen: Option<Vec<Vec<u64>>>,
    count: u64,
    is_last: bool,
    wrong: Option<String>,
}

impl Check {
    /// For a consumer that sees all items of that many producers.
    pub fn all(producers: usize, size: usize) -> Check {
        Check {
            size,
            bodies: bodies(size),
            next: vec![0; producers],
            seen: None,
            count: 0,
            is_last: false,
            wrong: None,
        }
    }

    /// For one of several consumers.
    pub fn some(producers: usize, size: usize) -> Check {
        Check { seen: Some(vec![Vec::new(); producers]), ..Check::all(producers, size) }
    }

    /// As if the first `count` items of the only producer had been seen.
    pub fn after(mut self, count: u64) -> Check {
        self.next[0] = count;
        self
    }

    #[inline]
    pub fn see(&mut self, payload: &[u8]) {
        let number = payload.first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
        let rest = payload.get(8..HEAD_BYTES).unwrap_or_default();
        let expected_len = (self.size as u32).to_le_bytes();
        if payload.len() != self.size || rest.get(4..) != Some(&expected_len[..]) {
            return self.fail(format!("an item of {} bytes where {} were put", payload.len(), self.size));
        }
        let producer = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        if producer == LAST {
            self.is_last = true;
            return;
        }
        self.count += 1;
        let Some(next) = self.next.get_mut(producer as usize) else {
            return self.fail(format!("an item of producer {producer}, which does not exist"));
        };
        let is_in_order = if self.seen.is_some() { number >= *next } else { number == *next };
        if !is_in_order {
            let next = *next;
            return self.fail(format!("item {number} of producer {producer} came where {next} was due"));
        }
        *next = number + 1;
        if payload[HEAD_BYTES..] != self.bodies[(number % VARIANTS) as usize][HEAD_BYTES..] {
            return self.fail(format!("the bytes of item {number} of producer {producer} are not those put"));
        }
        if let Some(seen) = &mut self.seen {
            let words = &mut seen[producer as usize];
            let word = (number / 64) as usize;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (number % 64);
        }
    }

    #[cold]
    fn fail(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The item that ends a consumer has come.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    pub fn is_wrong(&self) -> bool {
        self.wrong.is_some()
    }

    /// All is well so far.
    pub fn verdict(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)
    }

    /// All consumers together saw each item of each producer once.
    pub fn together(checks: &[Check], put: &[u64]) -> Result<(), String> {
        for check in checks {
            check.verdict()?;
        }
        let total: u64 = checks.iter().map(Check::count).sum();
        let expected: u64 = put.iter().sum();
        if total != expected {
            return Err(format!("{total} items came where {expected} were put"));
        }
        for (producer, put) in put.iter().enumerate() {
            for word in 0..put.div_ceil(64) {
                let seen = |check: &Check| {
                    check.seen.as_ref().and_then(|seen| seen[producer].get(word as usize).copied()).unwrap_or(0)
                };
                let bits = checks.iter().map(seen).fold(0, |all, bits| all | bits);
                let wanted = if (word + 1) * 64 <= *put { u64::MAX } else { (1 << (put % 64)) - 1 };
                if checks[0].seen.is_some() && bits != wanted {
                    return Err(format!("items of producer {producer} were lost, and others came twice"));
                }
            }
        }
        Ok(())
    }
}
