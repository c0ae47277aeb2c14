//! Small file systems on loop devices, taken down again whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command and gives its output, or says what went wrong.
pub fn run(words: &[&str]) -> Result<String, String> {
    let output =
        Command::new(words[0]).args(&words[1..]).output().map_err(|error| format!("{}: {error}", words.join(" ")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

pub fn is_root() -> bool {
    // SAFETY: reads a number.
    unsafe { libc::geteuid() == 0 }
}

/// Mounts of this process from here on are its own, and end with it. Called before there are threads.
pub fn own_namespace() {
    if is_root() {
        // SAFETY: no memory is handed over but a constant string; a failure leaves everything as it was.
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) == 0 {
                libc::mount(
                    std::ptr::null(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                );
            }
        }
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// While it lives, the machine seems to have been started anew: what is judged as after a power cut must not be taken for
/// what a process of this boot left in the page cache.
#[derive(Debug)]
pub struct OtherBoot;

impl OtherBoot {
    pub fn begin(scratch: &Path) -> Result<OtherBoot, String> {
        let file = scratch.join("boot_id");
        std::fs::write(&file, "6b657374-7265-6c2d-6c61-620000000000\n").map_err(|e| e.to_string())?;
        run(&["mount", "--bind", &text(&file), BOOT_ID])?;
        Ok(OtherBoot)
    }
}

impl Drop for OtherBoot {
    fn drop(&mut self) {
        let _ = run(&["umount", BOOT_ID]);
    }
}

fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        let more = ["/sbin", "/usr/sbin"].into_iter().map(PathBuf::from);
        std::env::split_paths(&path).chain(more).any(|dir| dir.join(program).exists())
    })
}

/// A file system on a file, mounted.
#[derive(Debug)]
pub struct Mount {
    pub dir: PathBuf,
    device: Option<String>,
    image: Option<PathBuf>,
    up: bool,
}

/// How a file system is made and mounted.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub mkfs: &'static [&'static str],
    pub options: &'static str,
    pub mib: u64,
}

impl Kind {
    pub fn fs(&self) -> &'static str {
        match self.mkfs.first() {
            Some(mkfs) => mkfs.strip_prefix("mkfs.").unwrap_or(mkfs),
            None => "tmpfs",
        }
    }

    /// Why it cannot be had here.
    pub fn missing(&self) -> Option<String> {
        if !is_root() {
            return Some("needs root".into());
        }
        self.mkfs.first().filter(|mkfs| !has(mkfs)).map(|mkfs| format!("needs {mkfs}"))
    }

    /// Makes the file system in a new image and mounts it in `base`.
    pub fn make(&self, base: &Path) -> Result<Mount, String> {
        let dir = base.join("mnt");
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        if self.mkfs.is_empty() {
            run(&["mount", "-t", "tmpfs", "-o", &format!("size={}m", self.mib), "none", &text(&dir)])?;
            return Ok(Mount { dir, device: None, image: None, up: true });
        }
        let image = base.join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(self.mib << 20)).map_err(|e| e.to_string())?;
        run(&[self.mkfs, &[text(&image).as_str()]].concat())?;
        Mount::of(&image, self.fs(), self.options, &dir)
    }
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Mount {
    pub fn of(image: &Path, fs: &str, options: &str, dir: &Path) -> Result<Mount, String> {
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let device = run(&["losetup", "--find", "--show", &text(image)])?;
        // On failure the device is given back by the drop.
        let mut mount =
            Mount { dir: dir.to_owned(), device: Some(device.clone()), image: Some(image.to_owned()), up: false };
        let options = if options.is_empty() { "rw" } else { options };
        run(&["mount", "-t", fs, "-o", options, &device, &text(dir)])?;
        mount.up = true;
        Ok(mount)
    }

    pub fn remount(&self, options: &str) -> Result<(), String> {
        run(&["mount", "-o", &format!("remount,{options}"), &text(&self.dir)]).map(|_| ())
    }

    /// Takes it down and puts it up again, as after a restart.
    pub fn again(mut self, fs: &str, options: &str) -> Result<Mount, String> {
        let (dir, image) = (self.dir.clone(), self.image.clone());
        self.take_down()?;
        match image {
            Some(image) => Mount::of(&image, fs, options, &dir),
            None => Err("a file system in memory does not come again".into()),
        }
    }

    fn take_down(&mut self) -> Result<(), String> {
        let mut unmounted = Ok(());
        if std::mem::take(&mut self.up) {
            unmounted = run(&["umount", &text(&self.dir)]).map(|_| ());
            if unmounted.is_err() {
                let _ = run(&["umount", "--lazy", &text(&self.dir)]);
            }
        }
        if let Some(device) = self.device.take() {
            let _ = run(&["losetup", "--detach", &device]);
        }
        unmounted
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.take_down();
    }
}

/// A directory of our own, removed at the end.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Result<Scratch, String> {
        let dir = std::env::temp_dir().join(format!("kestrel-lab-{what}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
