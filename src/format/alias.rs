//! The names of a set that stand for several queues, as one file that is replaced whole.

use std::collections::BTreeMap;

use super::{Bytes, Fault, VERSION, crc};

const MAGIC: &[u8; 8] = b"KESTRALI";

/// Each name with what it stands for: queues, or other such names.
pub(crate) type Aliases = BTreeMap<String, Vec<String>>;

/// No file of aliases is longer.
pub(crate) const FILE_MAX: usize = 1 << 20;

/// Names and numbers of targets are bounded by their own rules.
pub(crate) fn encode(aliases: &Aliases, seed: u32) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(aliases.len() as u32).to_le_bytes());
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    };
    for (name, targets) in aliases {
        text(&mut out, name);
        out.extend_from_slice(&(targets.len() as u16).to_le_bytes());
        for target in targets {
            text(&mut out, target);
        }
    }
    let sum = crc(seed, &out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

pub(crate) fn decode(file: &[u8], seed: u32) -> Result<Aliases, Fault> {
    let invalid = Fault::Invalid("aliases");
    let (body, sum) = file.split_at_checked(file.len().saturating_sub(4)).ok_or(invalid)?;
    if body.get(..8) != Some(MAGIC) || sum != crc(seed, body).to_le_bytes() {
        return Err(invalid);
    }
    let mut bytes = Bytes(&body[8..]);
    match bytes.u32() {
        Some(VERSION) => {}
        Some(other) => return Err(Fault::Version(other)),
        None => return Err(invalid),
    }
    let mut read = || {
        let text = |bytes: &mut Bytes<'_>| {
            let len = bytes.u16()?;
            std::str::from_utf8(bytes.take(len.into())?).ok().map(str::to_owned)
        };
        let mut aliases = Aliases::new();
        for _ in 0..bytes.u32()? {
            let name = text(&mut bytes)?;
            let count = bytes.u16()?;
            let targets = (0..count).map(|_| text(&mut bytes)).collect::<Option<Vec<_>>>()?;
            aliases.insert(name, targets);
        }
        bytes.0.is_empty().then_some(aliases)
    };
    read().ok_or(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Aliases {
        [("all".into(), vec!["a".into(), "ü".into()]), ("none".into(), Vec::new())].into()
    }

    #[test]
    fn aliases_come_back_and_any_flipped_bit_is_seen() {
        let bytes = encode(&sample(), 7);
        assert_eq!(decode(&bytes, 7), Ok(sample()));
        assert_eq!(decode(&bytes, 8), Err(Fault::Invalid("aliases")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, 7), Err(Fault::Invalid("aliases")), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], 7), Err(Fault::Invalid("aliases")), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes, 0);
            bytes.splice(..0, MAGIC.iter().copied().chain(VERSION.to_le_bytes()));
            let sum = crc(0, &bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            let _ = decode(&bytes, 0);
        }
    }
}
