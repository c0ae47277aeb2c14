//! Which queues of the set a job queue consists of, and how they are named.
//!
//! ```text
//! mail            fresh jobs of normal priority, in the order of their pushes
//! mail!high       the same for the other priorities, made when first needed: also mail!low, mail!idle
//! mail!later      jobs that pause or have moved: delayed, retrying, requeued; for the others mail!high!later, …
//! mail!suspects   jobs that ran when the process died: started one at a time
//! mail.dead       the dead
//! mail.done       records of the others that have ended
//! !jobs           which queues are job queues, which of them are paused, …
//! ```
//!
//! A job queue's own name has no `!`, so that none of these is another job queue's.

use crate::jobs::error::JobError;
use crate::jobs::job::Priority;

/// The queue of settings.
pub(crate) const SETTINGS: &str = "!jobs";
/// Of the staged jobs of a transaction.
pub(crate) const OUTBOX: &str = "!jobs!outbox";
/// Of the checkpoints.
pub(crate) const CHECKPOINTS: &str = "!jobs!checkpoints";
/// Of the keys that outlive their jobs.
pub(crate) const KEYS: &str = "!jobs!keys";
/// Without a journal, and always empty: who waits there learns of the set's end.
pub(crate) const END: &str = "!jobs!end";
/// Room for what is appended to a job queue's name.
const NAME_MAX: usize = 180;

/// Whether a job queue may have this name.
pub(crate) fn check(name: &str) -> Result<(), JobError> {
    let wrong = |reason| Err(JobError::QueueName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > NAME_MAX {
        return wrong("1 to 180 bytes");
    }
    if name.contains(['*', '!', ',']) {
        return wrong("`*`, `!` and `,` belong to patterns");
    }
    if name.contains(['+', '\0']) {
        return wrong("no `+` and no NUL");
    }
    if name.ends_with(".dead") || name.ends_with(".done") {
        return wrong("the endings .dead and .done are those of other queues' ended jobs");
    }
    Ok(())
}

pub(crate) fn fresh(queue: &str, priority: Priority) -> String {
    match priority {
        Priority::Normal => queue.to_owned(),
        Priority::High => format!("{queue}!high"),
        Priority::Low => format!("{queue}!low"),
        Priority::Idle => format!("{queue}!idle"),
    }
}

pub(crate) fn later(queue: &str, priority: Priority) -> String {
    format!("{}!later", fresh(queue, priority))
}

pub(crate) fn suspects(queue: &str) -> String {
    format!("{queue}!suspects")
}

pub(crate) fn dead(queue: &str) -> String {
    format!("{queue}.dead")
}

pub(crate) fn done(queue: &str) -> String {
    format!("{queue}.done")
}

/// The number by which ids of jobs name a queue of the set: the same in every process, and after the queue was made anew, whose
/// items go on with higher ids.
pub(crate) fn number(name: &str) -> u32 {
    crc32fast::hash(name.as_bytes())
}

/// `mail*,!mail.bulk`: what a name must match one of, and what it must match none of. `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patterns {
    wanted: Vec<String>,
    unwanted: Vec<String>,
}

impl Patterns {
    pub(crate) fn parse(text: &str) -> Result<Patterns, JobError> {
        let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
        for part in text.split(',').map(str::trim) {
            let (list, part) = match part.strip_prefix('!') {
                Some(part) => (&mut unwanted, part),
                None => (&mut wanted, part),
            };
            if part.is_empty() || part.contains('!') {
                return Err(JobError::Pattern { pattern: text.to_owned() });
            }
            list.push(part.to_owned());
        }
        if wanted.is_empty() {
            // Only what is unwanted was named: all the rest is wanted.
            wanted.push("*".to_owned());
        }
        Ok(Patterns { wanted, unwanted })
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()));
        any(&self.wanted) && !any(&self.unwanted)
    }
}

/// In the time of pattern times name, whatever the pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((behind, taken)) => {
                    star = Some((behind, taken + 1));
                    at = behind + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_they_name_and_leave_what_they_exclude() {
        for (patterns, yes, no) in [
            ("*", &["mail", "a"][..], &[][..]),
            ("mail*,!mail.bulk", &["mail", "mail.new"], &["mail.bulk", "amail"]),
            ("*bulk*", &["bulk", "a.bulk.b"], &["bul"]),
            ("a*b*c", &["abc", "axbybzc"], &["abcb", "ab"]),
            ("!x", &["mail"], &["x"]),
            ("x , y", &["x", "y"], &["z"]),
        ] {
            let parsed = Patterns::parse(patterns).expect(patterns);
            for name in yes {
                assert!(parsed.matches(name), "{patterns} {name}");
            }
            for name in no {
                assert!(!parsed.matches(name), "{patterns} {name}");
            }
        }
        for wrong in ["", ",", "a,,b", "!", "a!b", "!!a"] {
            assert!(Patterns::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_job_queue_has_no_name_of_another_ones_parts() {
        for wrong in ["", "a*", "!a", "a!b", "a,b", "a+b", "a.dead", "a.done", &"x".repeat(181)] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        for right in ["mail", "mail.bulk", "größe", &"x".repeat(180)] {
            assert!(check(right).is_ok(), "{right}");
        }
    }
}
