//! A real file system on a recorded block device: everything that the device was asked to write, in order, with its flushes.
//! From the record come the images that a power cut could have left: each moment of a flush, and between two flushes any
//! choice of the writes since the first, torn at sectors. Each is mounted, recovered by the file system, and judged.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::figures::Outcome;
use crate::memfs::{Event, MemFs};
use crate::mounts::{Kind, Mount, OtherBoot, Scratch, run, text};
use crate::work::{Cut, Ledger, judge, random};

const KINDS: &[Kind] = &[
    Kind { name: "ext4", mkfs: &["mkfs.ext4", "-q", "-m", "0"], options: "", mib: 16 },
    Kind { name: "xfs", mkfs: &["mkfs.xfs", "-q"], options: "", mib: 304 },
    Kind { name: "btrfs", mkfs: &["mkfs.btrfs", "-q"], options: "", mib: 112 },
];
const SECTOR: usize = 512;

/// The record of one run of the worker.
struct Record {
    base: Vec<u8>,
    events: Vec<Event>,
    ledger: String,
}

fn record(kind: &Kind, mode: &str, scratch: &Path, seed: u64) -> Result<Record, String> {
    let fs = MemFs::new();
    let device = scratch.join("device");
    let mounted = fs.mount(&device).map_err(|e| format!("FUSE: {e}"))?;
    let file = device.join("disk");
    File::create(&file).and_then(|file| file.set_len(kind.mib << 20)).map_err(|e| e.to_string())?;
    run(&[kind.mkfs, &[text(&file).as_str()]].concat())?;
    let mount = Mount::of(&file, kind.fs(), kind.options, &scratch.join("mnt"))?;
    let dir = mount.dir.join("d");
    std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
    run(&["sync", "-f", &text(&mount.dir)])?;
    let base = fs.content("disk").ok_or("the device is gone")?;
    let ledger = scratch.join("ledger");
    let _ = std::fs::remove_file(&ledger);
    fs.watch(&ledger);
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(program)
        .arg("worker")
        .args([&dir, &ledger])
        .args([&seed.to_string(), "1", mode, "0", "400"])
        .spawn()
        .map_err(|e| e.to_string())?;
    let patience = Instant::now() + Duration::from_secs(60);
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if Instant::now() > patience {
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if mode == "os" {
        run(&["sync", "-f", &text(&mount.dir)])?;
    }
    let events = fs.events();
    let ledger = std::fs::read_to_string(&ledger).map_err(|e| e.to_string())?;
    drop(mount);
    drop(mounted);
    Ok(Record { base, events, ledger })
}

/// One image: the sectors over the base, and how much of the ledger was written by then.
struct Image {
    sectors: BTreeMap<u64, Vec<u8>>,
    ledger: u64,
}

impl Record {
    /// Applies a write to a set of sectors; with `keep`, only those that it picks.
    fn apply(sectors: &mut BTreeMap<u64, Vec<u8>>, event: &Event, mut keep: impl FnMut() -> bool) {
        let Some((offset, data)) = &event.write else { return };
        for (i, sector) in data.chunks(SECTOR).enumerate() {
            if keep() {
                sectors.insert(offset + (i * SECTOR) as u64, sector.to_vec());
            }
        }
    }

    /// The images of `count` moments, spread evenly over the flushes, each with `tries` choices of what came after it.
    fn images(&self, count: usize, tries: u64, seed: u64, mut each: impl FnMut(Image)) {
        let flushes: Vec<usize> =
            self.events.iter().enumerate().filter(|(_, event)| event.write.is_none()).map(|(i, _)| i).collect();
        let every = flushes.len().div_ceil(count.max(1)).max(1);
        let mut sectors = BTreeMap::new();
        let mut applied = 0;
        let mut dice = seed;
        for (n, at) in flushes.iter().enumerate() {
            for event in &self.events[applied..*at] {
                Self::apply(&mut sectors, event, || true);
            }
            applied = *at;
            if n % every != 0 {
                continue;
            }
            each(Image { sectors: sectors.clone(), ledger: self.events[*at].ledger });
            let end = flushes.get(n + 1).copied().unwrap_or(self.events.len());
            let since = &self.events[*at..end];
            for _ in 0..tries {
                let mut some = sectors.clone();
                let cut = random(&mut dice) as usize % (since.len() + 1);
                // What was asked for last is what a device has least reason to have done.
                let mode = random(&mut dice) % 3;
                for (i, event) in since[..cut].iter().enumerate() {
                    match mode {
                        0 if random(&mut dice).is_multiple_of(2) => Self::apply(&mut some, event, || true),
                        0 => {}
                        1 => Self::apply(&mut some, event, || random(&mut dice).is_multiple_of(2)),
                        _ if i + 1 < cut => Self::apply(&mut some, event, || true),
                        _ => {
                            let mut left = random(&mut dice) % 8;
                            Self::apply(&mut some, event, || {
                                left = left.saturating_sub(1);
                                left > 0
                            });
                        }
                    }
                }
                let ledger = since[..cut].last().map_or(self.events[*at].ledger, |event| event.ledger);
                each(Image { sectors: some, ledger });
            }
        }
    }
}

impl Record {
    /// A rig that cannot fail proves nothing: an image of the middle, held against all answers, must be found wanting.
    fn a_lie_is_caught(&self, canvas: &mut Canvas, kind: &Kind, path: &Path, scratch: &Path) -> Result<bool, String> {
        let mut sectors = BTreeMap::new();
        for event in &self.events[..self.events.len() / 2] {
            Self::apply(&mut sectors, event, || true);
        }
        let mut book = Ledger::default();
        book.read(&self.ledger);
        canvas.draw(path, &Image { sectors, ledger: 0 }).map_err(|e| e.to_string())?;
        let mount = Mount::of(path, kind.fs(), "", &scratch.join("again"))?;
        Ok(judge(&mount.dir.join("d"), &book, "sync", Cut::Power).is_err())
    }
}

/// The image file, brought from one state to the next by what differs.
struct Canvas<'a> {
    file: File,
    base: &'a [u8],
    /// The chunks of it that are not all zeros.
    used: Vec<usize>,
}

const CHUNK: usize = 64 << 10;

impl<'a> Canvas<'a> {
    fn new(file: File, base: &'a [u8]) -> Canvas<'a> {
        let used = base.chunks(CHUNK).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0));
        Canvas { file, base, used: used.map(|(i, _)| i).collect() }
    }

    fn draw(&mut self, path: &Path, image: &Image) -> std::io::Result<()> {
        // Mounting writes anywhere, so each image begins anew; holes stay holes.
        self.file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
        self.file.set_len(self.base.len() as u64)?;
        for i in &self.used {
            let at = i * CHUNK;
            self.file.write_all_at(&self.base[at..(at + CHUNK).min(self.base.len())], at as u64)?;
        }
        for (offset, sector) in &image.sectors {
            self.file.write_all_at(sector, *offset)?;
        }
        Ok(())
    }
}

/// The layer. `images [MOMENTS [TRIES [SEED]]]`: flushes for each file system and durability, and choices after each.
pub fn layer(words: &[String]) -> Outcome {
    if !crate::mounts::is_root() || !Path::new("/dev/fuse").exists() {
        return Outcome::skipped("needs root and /dev/fuse");
    }
    let moments = crate::number(words, 0, 40) as usize;
    let tries = crate::number(words, 1, 4);
    let seed = crate::number(words, 2, 1);
    let mut outcome = Outcome::default();
    let mut skipped = Vec::new();
    for kind in KINDS {
        if let Some(why) = kind.missing() {
            skipped.push(format!("{} ({why})", kind.name));
            continue;
        }
        let (mut images, mut unmounted) = (0u64, 0u64);
        for mode in ["sync", "os"] {
            let result = Scratch::new("images").and_then(|scratch| {
                let record = record(kind, mode, &scratch.0, seed)?;
                let _boot = OtherBoot::begin(&scratch.0)?;
                let path = scratch.0.join("image");
                let file = File::create(&path).map_err(|e| e.to_string())?;
                let mut canvas = Canvas::new(file, &record.base);
                if mode == "sync" {
                    let caught = record.a_lie_is_caught(&mut canvas, kind, &path, &scratch.0)?;
                    outcome.note(caught);
                    if !caught {
                        println!("images: {}: a device that lies was not caught", kind.name);
                    }
                }
                record.images(moments, tries, seed, |image| {
                    let mut book = Ledger::default();
                    book.read(record.ledger.get(..image.ledger as usize).unwrap_or(&record.ledger));
                    // The process may have asked for one thing more than the ledger's last line tells.
                    let rest = record.ledger.get(image.ledger as usize..).unwrap_or_default();
                    book.read_questions(rest);
                    let judged = canvas.draw(&path, &image).map_err(|e| e.to_string()).and_then(|()| {
                        let at = scratch.0.join("again");
                        match Mount::of(&path, kind.fs(), "", &at) {
                            Ok(mount) => judge(&mount.dir.join("d"), &book, mode, Cut::Power).map(|_| true),
                            // The file system itself did not survive: not ours to answer for, but told.
                            Err(_) => Ok(false),
                        }
                    });
                    match judged {
                        Ok(true) => images += 1,
                        Ok(false) => unmounted += 1,
                        Err(_) => images += 1,
                    }
                    if judged != Ok(false) {
                        outcome.note(judged.is_ok());
                    }
                    if let Err(error) = judged {
                        println!("images: {}, {mode}, seed {seed}, image {images}: {error}", kind.name);
                    }
                });
                let flushes = record.events.iter().filter(|event| event.write.is_none()).count();
                println!("images: {}, {mode}: {} writes, {flushes} flushes", kind.name, record.events.len() - flushes);
                Ok(())
            });
            if let Err(error) = result {
                outcome.note(false);
                println!("images: {}, {mode}: {error}", kind.name);
            }
        }
        let names = match kind.name {
            "ext4" => ("ext4_images", "ext4_not_mountable"),
            "xfs" => ("xfs_images", "xfs_not_mountable"),
            _ => ("btrfs_images", "btrfs_not_mountable"),
        };
        outcome.counts.push((names.0, images));
        outcome.counts.push((names.1, unmounted));
    }
    if !skipped.is_empty() {
        println!("images: not here: {}", skipped.join(", "));
        outcome.facts.push(("not_here", skipped.join(", ")));
    }
    outcome
}
