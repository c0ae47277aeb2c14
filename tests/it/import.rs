//! The import of Kestrel's journals: made here, read by the example's own parser.

#[path = "../../examples/import_kestrel/journal.rs"]
mod journal;
#[path = "../../examples/import_kestrel/write.rs"]
mod write;

use std::path::{Path, PathBuf};

use journal::{Found, What};
use kestrel_core::QueueSet;
use write::Came;

use crate::common::{drain, text};

/// What Kestrel writes, opcode by opcode.
#[derive(Clone, Debug)]
enum Op {
    Add(&'static str),
    AddX(&'static str, i64, i64),
    Remove,
    Open1,
    SaveXid(i32),
    Unremove(i32),
    Confirm(i32),
    AddXid(i32, &'static str),
    Continue(i32, &'static str),
    Open(i32),
}

use Op::{Add, AddX, AddXid, Confirm, Continue, Open, Open1, Remove, SaveXid, Unremove};

fn x(data: &'static str) -> Op {
    AddX(data, 1_300_000_000_000, 0)
}

fn bytes(ops: &[Op]) -> Vec<u8> {
    let mut out = Vec::new();
    for op in ops {
        let (code, xid) = match op {
            Add(_) => (0, None),
            Remove => (1, None),
            AddX(..) => (2, None),
            Open1 => (3, None),
            SaveXid(xid) => (4, Some(xid)),
            Unremove(xid) => (5, Some(xid)),
            Confirm(xid) => (6, Some(xid)),
            AddXid(xid, _) => (7, Some(xid)),
            Continue(xid, _) => (8, Some(xid)),
            Open(xid) => (9, Some(xid)),
        };
        out.push(code);
        out.extend(xid.into_iter().flat_map(|xid| xid.to_le_bytes()));
        let (data, times) = match op {
            Add(data) => (data, None),
            AddX(data, added, expiry) => (data, Some((*added, *expiry))),
            AddXid(_, data) | Continue(_, data) => (data, Some((5, 0))),
            _ => continue,
        };
        match times {
            None => {
                out.extend((data.len() as i32 + 4).to_le_bytes());
                out.extend(0i32.to_le_bytes());
            }
            Some((added, expiry)) => {
                out.extend((data.len() as i32 + 16).to_le_bytes());
                out.extend(added.to_le_bytes());
                out.extend(expiry.to_le_bytes());
            }
        }
        out.extend(data.as_bytes());
    }
    out
}

struct Kestrel(tempfile::TempDir);

impl Kestrel {
    fn new(files: &[(&str, Vec<u8>)]) -> Kestrel {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).expect("writable");
        }
        Kestrel(dir)
    }

    fn files(&self, queue: &str) -> Vec<PathBuf> {
        journal::queues(self.0.path()).expect("readable").remove(queue).unwrap_or_default()
    }

    fn replay(&self, queue: &str, dedup: bool) -> Found {
        journal::replay(&self.files(queue), dedup, &mut |_| {})
    }

    fn items(&self, queue: &str) -> Vec<String> {
        data(&self.replay(queue, false))
    }
}

fn data(found: &Found) -> Vec<String> {
    let of = |item: &journal::Item| {
        let file = std::fs::read(&found.files[item.file]).expect("readable");
        let at = item.offset as usize;
        text(&file[at..at + item.len as usize])
    };
    found.items.iter().map(of).collect()
}

fn notes(found: &Found) -> Vec<What> {
    found.notes.iter().map(|note| note.what.clone()).collect()
}

fn one(ops: &[Op]) -> Vec<String> {
    let kestrel = Kestrel::new(&[("q", bytes(ops))]);
    let found = kestrel.replay("q", false);
    assert_eq!(notes(&found), []);
    data(&found)
}

#[test]
fn k73_k74_every_operation_means_what_it_meant() {
    assert_eq!(one(&[Add("a"), x("b"), Remove, Add("c")]), ["b", "c"]);
    assert_eq!(one(&[x("a"), x("b"), Open(7), Confirm(7)]), ["b"]);
    assert_eq!(one(&[x("a"), x("b"), Open(7), x("c"), Unremove(7)]), ["a", "b", "c"]);
    // What is open at the end comes first, in the order of places and not of numbers.
    assert_eq!(one(&[x("a"), x("b"), x("c"), Open(9), Open(2)]), ["a", "b", "c"]);
    assert_eq!(one(&[x("a"), x("b"), Open(9), Unremove(9), Open(3), Open(1)]), ["a", "b"]);
    // 1.x counts.
    assert_eq!(one(&[x("a"), x("b"), x("c"), Open1, Open1, Confirm(2)]), ["a", "c"]);
    assert_eq!(one(&[SaveXid(40), x("a"), x("b"), Open1, Confirm(41)]), ["b"]);
    assert_eq!(one(&[SaveXid(-1), x("a"), x("b"), Open1, Confirm(1)]), ["b"], "never 0");
    assert_eq!(one(&[SaveXid(i32::MAX), x("a"), x("b"), Open1, Confirm(i32::MIN)]), ["b"]);
    assert_eq!(one(&[AddXid(12, "a"), Open1, x("b"), Confirm(12)]), ["b"]);
    assert_eq!(one(&[AddXid(12, "a"), Open1, x("b"), Unremove(12), Open1]), ["a", "b"]);
    assert_eq!(one(&[]), [""; 0]);
}

#[test]
fn k74_a_continue_adds_and_ends_what_is_open_if_it_is() {
    assert_eq!(one(&[x("a"), Open(7), Continue(7, "b")]), ["b"]);
    assert_eq!(one(&[x("a"), Continue(7, "b")]), ["a", "b"]);
    assert_eq!(one(&[x("a"), Open(7), Continue(7, "b"), Open(7), Confirm(7)]), [""; 0]);
}

#[test]
fn k74_both_numbers_of_an_opening_are_followed_and_told() {
    // A rolled file of 1.2, played again by 1.2, which then counted.
    let ops = [AddXid(50, "a"), Open1, AddXid(51, "b"), Open1, SaveXid(51), x("c"), Confirm(51), Unremove(1)];
    let kestrel = Kestrel::new(&[("q", bytes(&ops))]);
    let found = kestrel.replay("q", false);
    assert_eq!((data(&found), notes(&found)), (vec!["a".into(), "c".into()], vec![What::TwoNumbers(1)]));
    let kestrel = Kestrel::new(&[("q", bytes(&[x("a"), Confirm(3), Remove, Remove]))]);
    let found = kestrel.replay("q", false);
    assert_eq!((data(&found), notes(&found)), (vec![], vec![What::Empty(1), What::NotOpen(1)]));
}

#[test]
fn k73_a_pack_replaces_what_is_older_and_unfinished_files_are_ignored() {
    let kestrel = Kestrel::new(&[
        ("q.100", bytes(&[x("old")])),
        ("q.300", bytes(&[x("b")])),
        ("q.1000", bytes(&[x("c"), Remove])),
        ("q.200.pack", bytes(&[x("packed"), x("a")])),
        ("q.150.pack", bytes(&[x("older pack")])),
        ("q", bytes(&[x("d")])),
        ("q~~400", bytes(&[x("unfinished")])),
        ("half.~~500", bytes(&[x("unfinished")])),
        ("q.txt", b"nothing of ours".to_vec()),
        ("q+r", bytes(&[x("reader's")])),
    ]);
    assert_eq!(kestrel.items("q"), ["a", "b", "c", "d"]);
    assert_eq!(kestrel.items("q+r"), ["reader's"]);
    let all: Vec<String> = journal::queues(kestrel.0.path()).expect("readable").into_keys().collect();
    assert_eq!(all, ["q", "q+r"]);
    assert_eq!(write::name_of("q+r"), "q.r");
}

#[test]
fn k73_a_crash_in_a_rewrite_is_told_and_undone_if_asked() {
    let old = [x("gone"), AddX("a", 1, 0), AddX("b", 2, 0), AddX("c", 3, 0), Remove, Open(4)];
    let packed = [AddX("a", 1, 0), Open(4), AddX("b", 2, 0), AddX("c", 3, 0)];
    let kestrel = Kestrel::new(&[("q.100", bytes(&packed)), ("q", bytes(&old))]);
    let twice = kestrel.replay("q", false);
    assert!(notes(&twice).contains(&What::Repeated) && twice.items.len() > 3);
    let once = kestrel.replay("q", true);
    assert_eq!((data(&once), notes(&once)), (vec!["a".into(), "b".into(), "c".into()], vec![What::LeftOut]));
    // The same data put at another time is another item, and a file that removes is no pack.
    let kestrel = Kestrel::new(&[("q.100", bytes(&[AddX("a", 9, 0)])), ("q", bytes(&[AddX("a", 1, 0)]))]);
    assert_eq!((data(&kestrel.replay("q", true)).len(), kestrel.replay("q", true).notes.len()), (2, 0));
    let kestrel = Kestrel::new(&[("q.100", bytes(&[x("a"), Remove])), ("q", bytes(&[x("a")]))]);
    assert_eq!(data(&kestrel.replay("q", true)), ["a"]);
}

/// A file with all operations, and what is left after each of its records.
fn sample() -> (Vec<Op>, Vec<u8>) {
    let ops = vec![
        Add("first"),
        x("second"),
        AddXid(9, "third"),
        Open1,
        SaveXid(3),
        Open(20),
        AddX("fourth", 7, 9),
        Unremove(20),
        Remove,
        Open(21),
        Continue(21, "fifth"),
        Confirm(1),
        x("last"),
    ];
    let bytes = bytes(&ops);
    (ops, bytes)
}

#[test]
fn k73_a_file_that_ends_anywhere_gives_what_came_before() {
    let (ops, whole) = sample();
    let ends: Vec<usize> = (0..=ops.len()).map(|count| bytes(&ops[..count]).len()).collect();
    for end in 0..=whole.len() {
        let kestrel = Kestrel::new(&[("q", whole[..end].to_vec())]);
        let found = kestrel.replay("q", false);
        let count = ends.iter().filter(|at| **at <= end).count() - 1;
        assert_eq!(data(&found), one(&ops[..count]), "cut at {end}");
        let rest = (end - ends[count]) as u64;
        let told: Vec<(u64, What)> = found.notes.iter().map(|note| (note.offset, note.what.clone())).collect();
        let expected = if rest == 0 { vec![] } else { vec![(ends[count] as u64, What::Cut(rest))] };
        assert_eq!(told, expected, "cut at {end}");
        assert_eq!(std::fs::read(&kestrel.files("q")[0]).expect("readable"), whole[..end], "the source is left alone");
    }
}

#[test]
fn k55_k73_no_damage_makes_it_panic_or_read_beyond_the_file() {
    let (_, whole) = sample();
    let mut told = 0;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let kestrel = Kestrel::new(&[("q.5", damaged.clone()), ("q", whole.clone())]);
            for dedup in [false, true] {
                let found = kestrel.replay("q", dedup);
                assert!(found.items.iter().all(|item| item.offset + item.len <= whole.len() as u64));
                told += found.notes.len();
            }
        }
        for size in [-1i32, 0, 3, 15, i32::MAX, i32::MIN, whole.len() as i32] {
            let mut damaged = whole.clone();
            let end = (at + 4).min(damaged.len());
            damaged[at..end].copy_from_slice(&size.to_le_bytes()[..end - at]);
            let kestrel = Kestrel::new(&[("q", damaged)]);
            let found = kestrel.replay("q", false);
            assert!(found.items.iter().all(|item| item.offset + item.len <= whole.len() as u64));
        }
    }
    assert!(told > 1000);
}

#[test]
fn k55_a_wrong_length_is_told_with_its_place_and_what_came_before_is_kept() {
    for (size, what) in [
        (-1, What::Damaged("an item of -1 bytes".into())),
        (0, What::Damaged("an item of 0 bytes".into())),
        (15, What::Damaged("an item of 15 bytes".into())),
        (i32::MAX, What::Cut(22)),
    ] {
        let mut file = bytes(&[x("kept"), x("x")]);
        let at = bytes(&[x("kept")]).len();
        file[at + 1..at + 5].copy_from_slice(&size.to_le_bytes());
        let kestrel = Kestrel::new(&[("q", file)]);
        let found = kestrel.replay("q", false);
        assert_eq!((data(&found), found.notes.len()), (vec!["kept".into()], 1));
        let note = &found.notes[0];
        assert_eq!((note.file.as_path(), note.offset, &note.what), (&*kestrel.files("q")[0], at as u64, &what));
        assert!(note.to_string().contains(&at.to_string()));
    }
}

#[test]
fn k73_behind_what_cannot_be_read_nothing_is_removed() {
    let mut damaged = bytes(&[x("a"), x("b")]);
    damaged.push(77);
    let newer = bytes(&[x("c"), Remove, Remove, Remove, Open(4), Confirm(4)]);
    let kestrel = Kestrel::new(&[("q.1", damaged), ("q", newer)]);
    let found = kestrel.replay("q", false);
    assert_eq!(data(&found), ["a", "b", "c"], "twice is better than never");
    let told = notes(&found);
    assert_eq!(told.len(), 3);
    assert!(told.contains(&What::Doubtful(4)) && told.contains(&What::NotOpen(1)));
    assert!(told.contains(&What::Damaged("no operation has the number 77".into())));
}

fn import(kestrel: &Kestrel, into: &Path, queue: &str) -> QueueSet {
    let set = QueueSet::open(into).expect("opens");
    let mut steps = 0;
    let found = kestrel.replay(queue, false);
    let came = write::write(&set, &write::name_of(queue), &found, &mut |n| steps += n).expect("writes");
    let count = found.items.len() as u64;
    assert_eq!((came, steps), (Came::Imported(count, 0), 2 * count));
    let again = write::write(&set, &write::name_of(queue), &found, &mut |_| {}).expect("looks");
    assert_eq!(again, Came::Before(count));
    set
}

#[test]
fn k73_the_items_are_written_in_order_and_the_source_is_left_alone() {
    let (_, whole) = sample();
    let kestrel = Kestrel::new(&[("q", bytes(&[x("0")])), ("q.5", whole.clone())]);
    let into = tempfile::tempdir().expect("a directory");
    let set = import(&kestrel, into.path(), "q");
    assert_eq!(drain(&set.queue("q").expect("opens")), ["fifth", "last", "0"]);
    assert_eq!(std::fs::read(&kestrel.files("q")[0]).expect("readable"), whole);
    assert_eq!(std::fs::read_dir(kestrel.0.path()).expect("readable").count(), 2);
}

#[test]
fn k73_expired_items_are_imported_as_expired_and_large_ones_are_not_refused() {
    let large = vec![b'x'; 3 << 20];
    let mut file = bytes(&[AddX("long ago", 5, 1_300_000_000_000), AddX("before all time", 5, -7), x("live")]);
    file.push(2);
    file.extend((large.len() as i32 + 16).to_le_bytes());
    file.extend([1; 8]);
    file.extend(i64::MAX.to_le_bytes());
    file.extend(&large);
    let kestrel = Kestrel::new(&[("q+r", file)]);
    let into = tempfile::tempdir().expect("a directory");
    let set = import(&kestrel, into.path(), "q+r");
    let queue = set.queue("q.r").expect("opens");
    assert_eq!(queue.stats().total_items, 4);
    queue.set_overrides(queue.overrides().expire_to(Some("late".into()))).expect("stored");
    assert_eq!(queue.try_get().expect("reads").map(|item| text(item.data())).as_deref(), Some("live"));
    assert_eq!(queue.try_get().expect("reads").map(|item| item.data() == large), Some(true));
    assert!(queue.try_get().expect("reads").is_none());
    crate::common::until("the expired ones have moved", || {
        let _ = queue.discard_expired(10);
        set.queue("late").expect("opens").stats().total_items == 2
    });
    let late = set.queue("late").expect("opens");
    for wanted in ["long ago", "before all time"] {
        // It is counted before it is durable, and given out after that.
        let item = late.get_timeout(std::time::Duration::from_secs(20)).expect("reads").expect("moved");
        assert_eq!(text(item.data()), wanted);
    }
}
