//! Queue name ↔ directory name.
//!
//! Every byte outside `[a-z0-9_-]` is percent-encoded, capitals too, so that `Jobs` and `jobs` differ on a file system
//! that ignores case, and `.`, `..`, device names, separators and control characters become harmless. Two names never
//! share a directory, because the encoding can be reversed. Names whose encoded form is longer than a directory entry may
//! be are split over nested directories, each but the last marked with a `+`, which the encoding itself never produces.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

const NAME_MAX: usize = 200;
const CHUNK: usize = 240;

const KEEP: AsciiSet = {
    let mut set = NON_ALPHANUMERIC.remove(b'_').remove(b'-');
    let mut capital = b'A';
    while capital <= b'Z' {
        set = set.add(capital);
        capital += 1;
    }
    set
};

/// Checks a queue name; the error is the rule it breaks.
pub(crate) fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a queue name has at least one byte");
    }
    if name.len() > NAME_MAX {
        return Err("a queue name has at most 200 bytes");
    }
    if name.contains('\0') {
        return Err("a queue name has no NUL");
    }
    if name.contains('+') {
        return Err("`+` separates a queue from its reader and is reserved");
    }
    Ok(())
}

/// Checks the name of a queue's reader, which may hold a `+` itself: `q+a+b` is the reader `a+b` of `q`.
pub(crate) fn check_reader(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a reader's name has at least one byte");
    }
    if name.len() > NAME_MAX {
        return Err("a reader's name has at most 200 bytes");
    }
    if name.contains('\0') {
        return Err("a reader's name has no NUL");
    }
    Ok(())
}

/// The nested directory names of a queue; one for nearly every name.
pub(crate) fn encode(name: &str) -> Vec<String> {
    // Lower-case hex digits: an upper-case one would meet its lower-case twin on a case-blind file system.
    let encoded = utf8_percent_encode(name, &KEEP).to_string();
    let encoded: String = encoded
        .split('%')
        .enumerate()
        .map(|(i, part)| match (i, part.split_at_checked(2)) {
            (0, _) | (_, None) => part.to_owned(),
            (_, Some((hex, rest))) => format!("%{}{rest}", hex.to_ascii_lowercase()),
        })
        .collect();
    let chunks: Vec<&str> = encoded.as_bytes().chunks(CHUNK).filter_map(|c| std::str::from_utf8(c).ok()).collect();
    let last = chunks.len().saturating_sub(1);
    chunks
        .iter()
        .enumerate()
        .map(|(i, chunk)| if i < last { format!("{chunk}+") } else { (*chunk).to_owned() })
        .collect()
}

/// The name whose directories these are; `None` for directories that no name is encoded to.
pub(crate) fn decode(parts: &[String]) -> Option<String> {
    let joined: String = parts.iter().map(|part| part.strip_suffix('+').unwrap_or(part)).collect();
    let name = percent_decode_str(&joined).decode_utf8().ok()?.into_owned();
    (check(&name).is_ok() && encode(&name) == parts).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_names_stand_for_themselves() {
        assert_eq!(encode("jobs-2_x"), ["jobs-2_x"]);
        assert_eq!(encode("Jobs"), ["%4aobs"]);
        assert_eq!(encode("../x"), ["%2e%2e%2fx"]);
        assert_eq!(encode("é"), ["%c3%a9"]);
    }

    #[test]
    fn long_names_are_split_and_come_back() {
        let name = "💥".repeat(50);
        let parts = encode(&name);
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|p| p.len() <= 255));
        assert_eq!(decode(&parts).as_deref(), Some(name.as_str()));
    }

    #[test]
    fn foreign_directories_are_nobodys() {
        for part in ["Jobs", "%4Aobs", "a.b", "%61", "%zz", "", "a+", "%00"] {
            assert_eq!(decode(&[part.to_owned()]), None, "{part}");
        }
    }

    proptest! {
        #[test]
        fn each_name_comes_back_from_its_own_directory(name in "\\PC{1,50}") {
            prop_assume!(check(&name).is_ok());
            let parts = encode(&name);
            prop_assert!(parts.iter().all(|p| p.len() <= 255
                && p.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'%' | b'+'))));
            prop_assert_eq!(decode(&parts), Some(name));
        }
    }
}
