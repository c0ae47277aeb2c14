//! The name of a job: [`JobId`].

use std::fmt;
use std::str::FromStr;

/// Names a job of a set, for good: over retries, death and requeue, and across restarts. Never given out twice.
///
/// Printed it is one token of letters, digits and a hyphen, which [`FromStr`] reads. Of two jobs pushed to the same queue with
/// the same priority, both at once or both with a delay, the later one has the higher id.
///
/// ```
/// use kestrel_core::jobs::JobId;
/// let id: JobId = "7f3a9c01-2a".parse()?;
/// assert_eq!(id.to_string(), "7f3a9c01-2a");
/// assert!("mail".parse::<JobId>().is_err());
/// # Ok::<(), kestrel_core::jobs::ParseJobIdError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// Of the queue of the set that the job was first put into: [`crate::jobs::names::number`].
    pub(crate) lane: u32,
    /// Its item id there.
    pub(crate) item: u64,
}

/// A text that is no [`JobId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a job: 8 hexadecimal digits, a hyphen and 1 to 16 more are")]
pub struct ParseJobIdError;

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.lane, self.item)
    }
}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    fn from_str(text: &str) -> Result<JobId, ParseJobIdError> {
        let (lane, item) = text.split_once('-').ok_or(ParseJobIdError)?;
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        // As it is printed, and not otherwise: one job has one name.
        if lane.len() != 8 || !is_hex(lane) || !is_hex(item) || (item.len() > 1 && item.starts_with('0')) {
            return Err(ParseJobIdError);
        }
        let lane = u32::from_str_radix(lane, 16).map_err(|_| ParseJobIdError)?;
        let item = u64::from_str_radix(item, 16).map_err(|_| ParseJobIdError)?;
        Ok(JobId { lane, item })
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<JobId, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_name() {
        for id in [JobId { lane: 0, item: 0 }, JobId { lane: u32::MAX, item: u64::MAX }, JobId { lane: 7, item: 0xA0 }]
        {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "-", "00000007", "00000007-", "00000007-0a", "00000007-A", "7-a", "+0000007-1", "00000007-1-1"]
        {
            assert_eq!(text.parse::<JobId>(), Err(ParseJobIdError), "{text}");
        }
        assert!("00000007-10000000000000000".parse::<JobId>().is_err());
    }
}
