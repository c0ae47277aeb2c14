//! Makes thumbnails of a directory of images as background jobs, and survives `kill -9` at any moment.
//!
//! The program makes the images itself, so that it knows what the thumbnails must look like. Every image becomes a job, with its path
//! as its key: each start of the program looks for images without a thumbnail and pushes a job for each, and those whose job is
//! there already, waiting or interrupted, are left out. So nothing has to be remembered between two starts but the queue.
//!
//! How a kill loses nothing and spoils nothing:
//! - *Between two pushes*: the next start pushes the rest. *In `push_all`*: all of them are there, or none.
//! - *In a handler*: the job is started again. The thumbnail is written beside its place and renamed, so nobody sees half of one.
//! - *Between the rename and the end of the job*: it is made again, the same.
//!
//! Each of these starts counts as an attempt and as a crash, and a job that was there three times when its process died would be given
//! up as the one that killed it. Here the kills come from outside and strike at random, so the kind's `max_crashes` says more. While a job is
//! suspected it runs beside innocent ones, but never beside another suspect.
//!
//! `cargo run --release --example thumbnails --features jobs,postcard`, and the same with `-- --kill-after 150`.

use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use kestrel_core::jobs::{Ctx, Event, Fail, Job, JobOptions, Jobs, Unique};
use kestrel_core::{Postcard, QueueSet};
use serde::{Deserialize, Serialize};

const USAGE: &str = "\
Makes thumbnails of a directory of images as background jobs, and survives kill -9 at any moment.

thumbnails [--images N] [--data DIR] [--workers N] [--pause MS] [--kill-after MS [--kills N]]

  --images N       how many images to make; default 60
  --data DIR       where images, thumbnails and queues live; default: a fresh directory, removed at the end
  --workers N      threads; default 4
  --pause MS       how long each job takes at least; default 0, with --kill-after 50
  --kill-after MS  start itself as a child, kill -9 it after MS, then start another: N times (default 3), and let the
                   last one finish

Exit code 1: a thumbnail is missing or wrong, a job is dead, or the run failed.";

type Any<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WIDTH: u32 = 160;
const KILLS_MAX: u32 = 100;

#[derive(Serialize, Deserialize)]
struct Thumbnail {
    image: PathBuf,
    thumbnail: PathBuf,
}

impl Job for Thumbnail {
    const KIND: &'static str = "thumbnail";
    type Codec = Postcard;

    fn options() -> JobOptions {
        JobOptions::default()
            .queue("thumbnails")
            .unique(Unique::UntilDone)
            .max_attempts(KILLS_MAX + 3)
            .max_crashes(KILLS_MAX + 1)
    }

    fn unique_key(&self) -> Option<Vec<u8>> {
        Some(self.image.as_os_str().as_encoded_bytes().to_vec())
    }
}

struct Settings {
    images: u32,
    data: PathBuf,
    workers: u32,
    pause: Option<Duration>,
    kill_after: Option<Duration>,
    kills: u32,
}

fn main() -> ExitCode {
    let temporary = std::env::temp_dir().join(format!("kestrel-thumbnails-{}", std::process::id()));
    let settings = match settings(&temporary) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("thumbnails: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    let good = match settings.kill_after {
        Some(after) => survive(&settings, after),
        None => run(&settings),
    };
    if matches!(good, Ok(true)) {
        let _ = fs::remove_dir_all(&temporary);
    }
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("thumbnails: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command line; `None` if help is wanted.
fn settings(temporary: &Path) -> Any<Option<Settings>> {
    let mut settings =
        Settings { images: 60, data: temporary.to_owned(), workers: 4, pause: None, kill_after: None, kills: 3 };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--help" || name == "-h" {
            return Ok(None);
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u32>().map_err(|_| format!("{name} needs a number, not {value:?}"));
        match name.as_str() {
            "--images" => settings.images = number()?.clamp(1, 10_000),
            "--data" => settings.data = PathBuf::from(&value),
            "--workers" => settings.workers = number()?.clamp(1, 64),
            "--pause" => settings.pause = Some(Duration::from_millis(number()?.into())),
            "--kill-after" => settings.kill_after = Some(Duration::from_millis(number()?.into())),
            "--kills" => settings.kills = number()?.clamp(1, KILLS_MAX),
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    Ok(Some(settings))
}

/// Starts itself, kills the child, and does so again; the last child may finish.
fn survive(settings: &Settings, after: Duration) -> Any<bool> {
    let spawn = |pause: Duration| {
        Command::new(std::env::current_exe()?)
            .args(["--images", &settings.images.to_string()])
            .arg("--data")
            .arg(&settings.data)
            .args(["--workers", &settings.workers.to_string()])
            .args(["--pause", &pause.as_millis().to_string()])
            .spawn()
    };
    make_images(settings)?; // so that the kills strike the work, not the preparation
    for n in 1..=settings.kills {
        let mut child = spawn(settings.pause.unwrap_or(Duration::from_millis(50)))?;
        std::thread::sleep(after);
        if let Some(status) = child.try_wait()? {
            if n == 1 {
                let hint = "choose fewer milliseconds, a longer --pause or more images";
                return Err(format!("the child ended before it could be killed: {hint}").into());
            }
            println!("this one ended before it could be killed");
            return Ok(status.success());
        }
        child.kill()?;
        child.wait()?;
        println!("kill {n}: SIGKILL after {after:?}");
    }
    Ok(spawn(settings.pause.unwrap_or_default())?.wait()?.success())
}

fn run(settings: &Settings) -> Any<bool> {
    let images = make_images(settings)?;
    let thumbnails = settings.data.join("thumbnails");
    fs::create_dir_all(&thumbnails)?;
    let set = QueueSet::open(settings.data.join("queues"))?;
    let (builder, events) = Jobs::builder(&set).events();
    let jobs = builder.open()?;

    let mut wanted = Vec::new();
    for image in &images {
        let thumbnail = thumbnails.join(image.file_name().ok_or("an image without a name")?);
        if !thumbnail.exists() {
            wanted.push(Thumbnail { image: image.clone(), thumbnail });
        }
    }
    let pushed = jobs.push_all(&wanted)?;
    let fresh = pushed.iter().filter(|pushed| !pushed.duplicate).count();
    println!("{} images, {} without a thumbnail, {fresh} of them without a job", images.len(), wanted.len());

    let start = Instant::now();
    let pause = settings.pause.unwrap_or_default();
    let handler = move |ctx: &Ctx, job: Thumbnail| -> Result<(), Fail> {
        std::thread::sleep(pause);
        shrink(&job)?;
        ctx.progress(1, 1);
        Ok(())
    };
    let worker = jobs.worker().threads(settings.workers as usize).on(handler).start()?;
    let mut terminal = io::stderr();
    let (mut done, mut crashed, mut failed) = (0, 0, 0);
    while jobs.stats().queues.values().any(|queue| queue.waiting + queue.delayed + queue.running > 0) {
        let Some(event) = events.next_timeout(Duration::from_millis(100)) else { continue };
        match event {
            Event::Crashed { .. } => crashed += 1,
            Event::Done { .. } => done += 1,
            Event::Retrying { error, .. } | Event::Dead { error, .. } => {
                failed += 1;
                println!("failed: {error}");
            }
            _ => {}
        }
        if terminal.is_terminal() {
            let rate = f64::from(done) / start.elapsed().as_secs_f64();
            let _ = write!(terminal, "\r\x1b[K{done} of {} thumbnails, {rate:.0} a second", wanted.len());
        }
    }
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K");
    }
    let left = worker.shutdown(Duration::from_secs(10));
    // What no longer came while the loop looked.
    while let Some(event) = events.try_next() {
        done += u32::from(matches!(event, Event::Done { .. }));
        crashed += u32::from(matches!(event, Event::Crashed { .. }));
    }
    set.close()?;

    // Each start that was cut off is retried, and nothing else had to be.
    let mut good = left.returned == 0 && failed == crashed;
    for (number, image) in (0..).zip(&images) {
        let thumbnail = thumbnails.join(image.file_name().ok_or("an image without a name")?);
        if let Err(error) = check(number, &thumbnail) {
            println!("WRONG: {}: {error}", thumbnail.display());
            good = false;
        }
    }
    println!(
        "{done} thumbnails made in {:.1} s, {crashed} starts were cut off by the kill before; all {} images have theirs: {good}",
        start.elapsed().as_secs_f64(),
        images.len()
    );
    Ok(good)
}

/// What a job does. The same however often it is done.
fn shrink(job: &Thumbnail) -> image::ImageResult<()> {
    let image = image::open(&job.image)?;
    let height = (image.height() * WIDTH).div_ceil(image.width());
    let small = image.resize_exact(WIDTH, height, image::imageops::FilterType::Triangle);
    let beside = job.thumbnail.with_extension("part");
    small.save_with_format(&beside, image::ImageFormat::Png)?;
    fs::rename(beside, &job.thumbnail)?;
    Ok(())
}

/// Images of many sizes, each with a pattern of its own. Those that are there stay.
fn make_images(settings: &Settings) -> Any<Vec<PathBuf>> {
    let dir = settings.data.join("images");
    fs::create_dir_all(&dir)?;
    let mut paths = Vec::new();
    for number in 0..settings.images {
        let path = dir.join(format!("{number:05}.png"));
        if !path.exists() {
            let (width, height) = size(number);
            let image = RgbImage::from_fn(width, height, |x, y| {
                pattern(number, f64::from(x) / f64::from(width), f64::from(y) / f64::from(height))
            });
            let beside = path.with_extension("part");
            image.save_with_format(&beside, image::ImageFormat::Png)?;
            fs::rename(beside, &path)?;
        }
        paths.push(path);
    }
    Ok(paths)
}

fn size(number: u32) -> (u32, u32) {
    (480 + number % 7 * 40, 360 + number % 5 * 60)
}

/// The colour at a place, in shares of width and height.
fn pattern(number: u32, x: f64, y: f64) -> Rgb<u8> {
    let waves = f64::from(number % 9 + 1);
    let phase = f64::from(number) * 0.7;
    let shade = |value: f64| (127.5 + 120.0 * value.sin()) as u8;
    Rgb([shade(waves * x + phase), shade(waves * y - phase), shade(2.0 * (x + y) + phase)])
}

/// Whether a thumbnail shows the pattern of its image.
fn check(number: u32, path: &Path) -> Any<()> {
    let image = image::open(path)?.into_rgb8();
    let (width, height) = size(number);
    let wanted = (WIDTH, (height * WIDTH).div_ceil(width));
    if image.dimensions() != wanted {
        return Err(format!("{:?} pixels, not {wanted:?}", image.dimensions()).into());
    }
    for (x, y, found) in image.enumerate_pixels() {
        let at = |place: u32, of: u32| (f64::from(place) + 0.5) / f64::from(of);
        let right = pattern(number, at(x, wanted.0), at(y, wanted.1));
        let off = found.0.iter().zip(right.0).map(|(a, b)| a.abs_diff(b)).max();
        if off > Some(12) {
            return Err(format!("the pixel {x},{y} is {found:?}, not {right:?}").into());
        }
    }
    Ok(())
}
