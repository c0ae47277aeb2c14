//! True power cuts: a guest machine runs the worker on its own disk and tells the ledger over the serial line; the machine is
//! killed at a moment of chance, with all that its memory held; the disk is mounted and judged.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::figures::Outcome;
use crate::mounts::{Kind, Mount, Scratch, run, text};
use crate::work::{Cut, Found, Ledger, judge, random};

const DISK: Kind = Kind { name: "ext4", mkfs: &["mkfs.ext4", "-q", "-m", "0"], options: "", mib: 24 };
const QEMU: &str = "qemu-system-x86_64";
const BOOT: Duration = Duration::from_secs(90);

/// The newest kernel in `/boot` that has its modules, with its version.
fn kernel() -> Option<(PathBuf, String)> {
    let mut found: Vec<(PathBuf, String)> = std::fs::read_dir("/boot")
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            Path::new("/lib/modules").join(&version).is_dir().then_some((path, version))
        })
        .collect();
    found.sort();
    found.pop()
}

/// A first file system for the guest: a shell, the modules of its disk, and this program.
fn initramfs(scratch: &Path, version: &str) -> Result<PathBuf, String> {
    let root = scratch.join("initramfs");
    let io = |error: std::io::Error| error.to_string();
    for dir in ["bin", "dev", "proc", "sys", "mnt", "tmp", "lib64", "modules"] {
        std::fs::create_dir_all(root.join(dir)).map_err(io)?;
    }
    let busybox = run(&["sh", "-c", "command -v busybox"])?;
    std::fs::copy(busybox, root.join("bin/busybox")).map_err(io)?;
    for name in ["sh", "mount", "insmod", "mkdir"] {
        symlink("busybox", root.join("bin").join(name)).map_err(io)?;
    }
    let program = std::env::current_exe().map_err(io)?;
    std::fs::copy(&program, root.join("bin/lab")).map_err(io)?;
    for line in run(&["ldd", &text(&program)])?.lines() {
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let to = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap_or(&root)).map_err(io)?;
        std::fs::copy(library, to).map_err(io)?;
    }
    let mut init =
        String::from("#!/bin/sh\nmount -t proc none /proc\nmount -t sysfs none /sys\nmount -t devtmpfs none /dev\n");
    let mut loaded = Vec::new();
    for module in ["virtio_pci", "virtio_blk"] {
        for line in run(&["modprobe", "-S", version, "--show-depends", module])?.lines() {
            let Some(path) = line.strip_prefix("insmod ").map(str::trim) else { continue };
            let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !loaded.contains(&name) {
                std::fs::copy(path, root.join("modules").join(&name)).map_err(io)?;
                init.push_str(&format!("insmod /modules/{name}\n"));
                loaded.push(name);
            }
        }
    }
    init.push_str("mount -t ext4 /dev/vda /mnt\nmkdir -p /mnt/d\nset -- $(/bin/busybox cat /proc/cmdline)\n");
    init.push_str("for word; do case $word in lab=*) words=${word#lab=};; esac; done\nIFS=,\nset -- $words\n");
    // What the firmware wrote may stand on the line still.
    init.push_str("echo\necho booted\n/bin/lab worker /mnt/d - \"$@\"\necho ended\n/bin/busybox sleep 1000\n");
    let path = root.join("init");
    std::fs::write(&path, init).map_err(io)?;
    run(&["chmod", "755", &text(&path)])?;
    let archive = scratch.join("initramfs.cpio");
    run(&["sh", "-c", &format!("cd {} && find . | cpio -o -H newc --quiet > {}", text(&root), text(&archive))])?;
    Ok(archive)
}

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a cut is told whose guest did not come as far as to run this program, most likely for want of time on a busy machine.
const NO_BOOT: &str = "the guest does not boot";
/// So often may a cut begin anew for that; one more is a failure.
const ANEW: u64 = 2;

/// One cut. How many puts were answered, and what was found.
fn cut(scratch: &Path, kernel: &Path, initramfs: &Path, mode: &str, seed: u64) -> Result<(u64, Found), String> {
    let [disk, serial] = ["disk", "serial"].map(|name| scratch.join(name));
    let _ = std::fs::remove_file(&serial);
    std::fs::File::create(&disk).and_then(|file| file.set_len(DISK.mib << 20)).map_err(|e| e.to_string())?;
    run(&[DISK.mkfs, &[text(&disk).as_str()]].concat())?;
    let threads = 1 + seed % 2;
    let guest = Command::new(QEMU)
        .args(["-machine", "pc", "-cpu", "max", "-m", "256", "-nographic", "-no-reboot", "-nodefaults"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &format!("console=ttyS0 quiet loglevel=0 panic=-1 lab={seed},{threads},{mode}")])
        .args(["-drive", &format!("file={},if=virtio,format=raw,cache=writeback", text(&disk))])
        .args(["-serial", &format!("file:{}", text(&serial))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{QEMU}: {e}"))?;
    let guest = Guest(guest);
    let told = || {
        let mut bytes = Vec::new();
        let _ = std::fs::File::open(&serial).and_then(|mut file| file.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let start = Instant::now();
    while !told().contains("P ") {
        if start.elapsed() > BOOT {
            let said = told();
            if !said.contains("booted") {
                return Err(NO_BOOT.to_owned());
            }
            return Err(format!(
                "the guest does not begin: {}",
                said.get(said.len().saturating_sub(300)..).unwrap_or(&said)
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut dice = seed;
    std::thread::sleep(Duration::from_millis(random(&mut dice) % 2000));
    drop(guest);
    let mut book = Ledger::default();
    book.read(&told());
    let mount = Mount::of(&disk, DISK.fs(), "", &scratch.join("mnt"))?;
    judge(&mount.dir.join("d"), &book, mode, Cut::Power).map(|found| (book.put.len() as u64, found))
}

/// The layer. `vm [CUTS [SEED]]`.
pub fn layer(words: &[String]) -> Outcome {
    if !crate::mounts::is_root() {
        return Outcome::skipped("needs root, to mount the guest's disk");
    }
    if let Err(why) = run(&[QEMU, "--version"]) {
        return Outcome::skipped(why);
    }
    let Some((kernel, version)) = kernel() else {
        return Outcome::skipped("no kernel with its modules in /boot");
    };
    let cuts = crate::number(words, 0, 20);
    let seed = crate::number(words, 1, 1);
    let mut outcome = Outcome::default();
    let prepared = Scratch::new("vm").and_then(|scratch| initramfs(&scratch.0, &version).map(|made| (scratch, made)));
    let (scratch, initramfs) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Outcome::skipped(why),
    };
    let (mut answered, mut items, mut closed, mut not_booted) = (0, 0, 0, 0);
    for n in 0..cuts {
        let mode = ["sync", "os", "sync", "every"][(n % 4) as usize];
        let mut result = cut(&scratch.0, &kernel, &initramfs, mode, seed + n);
        for _ in 0..ANEW {
            if result.as_ref().is_err_and(|why| why == NO_BOOT) {
                not_booted += 1;
                result = cut(&scratch.0, &kernel, &initramfs, mode, seed + n);
            }
        }
        outcome.note(result.is_ok());
        match result {
            Ok((puts, found)) => {
                answered += puts;
                items += found.items;
                closed += found.closed_before;
            }
            Err(error) => println!("vm: cut {n}, {mode}, seed {}: {error}", seed + n),
        }
    }
    outcome.counts.push(("power_cuts", cuts));
    outcome.counts.push(("answered_puts", answered));
    outcome.counts.push(("items_found", items));
    outcome.counts.push(("closed_items_delivered_again", closed));
    outcome.counts.push(("guests_that_did_not_boot", not_booted));
    outcome.facts.push(("kernel", version));
    outcome
}
