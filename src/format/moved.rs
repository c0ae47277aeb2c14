//! Items on their way from one queue of a set to another: the note in front of a dead letter's payload, and the set's record
//! of which queues items move between.

use super::{Bytes, crc};

/// What is kept of a reason; enough for an error and its causes.
pub(crate) const REASON_MAX: usize = 4096;

/// `queue` and `reason`, each with its length (2 bytes) before it; the item's own payload follows.
pub(crate) fn encode_note(queue: &str, reason: &str, payload: &[u8]) -> Vec<u8> {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &reason[..end];
    let mut out = Vec::with_capacity(note_len(queue, reason) + payload.len());
    for text in [queue, reason] {
        // A name has at most 200 bytes, a reason has just been cut.
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(payload);
    out
}

fn note_len(queue: &str, reason: &str) -> usize {
    2 + queue.len() + 2 + reason.len()
}

/// Queue, reason, and where the item's own payload begins. `None`: this is no note, which under a valid checksum is somebody
/// else's doing.
pub(crate) fn decode_note(bytes: &[u8]) -> Option<(&str, &str, usize)> {
    let mut rest = Bytes(bytes);
    let mut text = || {
        let len = rest.u16()?;
        std::str::from_utf8(rest.take(len.into())?).ok()
    };
    let (queue, reason) = (text()?, text()?);
    Some((queue, reason, note_len(queue, reason)))
}

/// Two queues that items move between: from the id `floor` on, the second one's journal may hold items of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) from: String,
    pub(crate) into: String,
    pub(crate) floor: u64,
}

/// Checksum, lengths of the names, floor, names.
pub(crate) fn encode_route(route: &Route, seed: u32) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&(route.from.len() as u16).to_le_bytes());
    out.extend_from_slice(&(route.into.len() as u16).to_le_bytes());
    out.extend_from_slice(&route.floor.to_le_bytes());
    out.extend_from_slice(route.from.as_bytes());
    out.extend_from_slice(route.into.as_bytes());
    let sum = crc(seed, &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The first of a row of routes, and its length. `None`: the row ends here.
pub(crate) fn decode_route(bytes: &[u8], seed: u32) -> Option<(Route, usize)> {
    let mut rest = Bytes(bytes);
    let sum = rest.u32()?;
    let (from, into) = (usize::from(rest.u16()?), usize::from(rest.u16()?));
    let floor = rest.u64()?;
    let names = rest.take(from + into)?;
    let len = bytes.len() - rest.0.len();
    if from == 0 || into == 0 || crc(seed, &bytes[4..len]) != sum {
        return None;
    }
    let (from, into) = names.split_at(from);
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    Some((Route { from: text(from)?, into: text(into)?, floor }, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_note_comes_back_whole(queue in ".{1,40}", reason in ".{0,3000}", payload: Vec<u8>) {
            let bytes = encode_note(&queue, &reason, &payload);
            let (found, why, at) = decode_note(&bytes).expect("a note");
            prop_assert_eq!((found, &bytes[at..]), (queue.as_str(), &payload[..]));
            prop_assert!(reason.starts_with(why) && (why.len() == reason.len() || why.len() > REASON_MAX - 4));
        }

        #[test]
        fn routes_come_back_up_to_the_first_that_is_not_whole(floors in proptest::collection::vec(any::<u64>(), 1..5), cut in 1usize..24) {
            let routes: Vec<Route> = floors.iter().map(|&floor| Route { from: "a/ü".into(), into: "b".into(), floor }).collect();
            let mut bytes: Vec<u8> = routes.iter().flat_map(|route| encode_route(route, 7)).collect();
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let (mut at, mut found) = (0, Vec::new());
            while let Some((route, len)) = decode_route(&bytes[at..], 7) {
                found.push(route);
                at += len;
            }
            prop_assert_eq!(&found[..], &routes[..routes.len() - 1 - usize::from(cut > 21 && routes.len() > 1)]);
            prop_assert_eq!(decode_route(&bytes, 8), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (decode_note(&bytes), decode_route(&bytes, 0));
        }
    }

    #[test]
    fn zeros_are_no_route() {
        assert_eq!(decode_route(&[0; 64], 0), None);
    }
}
