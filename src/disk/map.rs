//! Mapped memory behind `copy_in`, `copy_out`, `store_byte`, `load_byte`. The only module with `unsafe`.
//!
//! The contract that every block below answers to:
//! 1. *Bounds*: `offset + count <= len` is checked before any pointer is formed, with overflow-free arithmetic.
//! 2. *Lifetime*: the pointer comes from the `MmapRaw` that `self` owns, so the mapping outlives the access.
//! 3. *No references*: no `&[u8]` or `&u8` over mapped memory is ever made. Another thread (or, against the rules, another
//!    process) may store there at the same time; a copy through raw pointers may then read mixed bytes, which the
//!    checksum over the *copy* finds, but no reference whose validity the compiler assumes exists.
//! 4. *Truncation*: somebody who truncates the file makes an access a SIGBUS. The set's lock, mode 0600 and the length
//!    check at each clock tick ([`crate::journal`]) keep that to a hostile or careless process of the same user.

#![expect(unsafe_code, reason = "the one module that touches mapped memory")]

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// A shared, writable mapping of a whole file, or anonymous memory.
#[derive(Debug)]
pub(crate) struct Mapped {
    raw: MmapRaw,
    len: usize,
}

impl Mapped {
    pub(crate) fn of_file(file: &std::fs::File, len: usize) -> io::Result<Mapped> {
        let raw = MmapOptions::new().len(len).map_raw(file)?;
        Ok(Mapped { raw, len })
    }

    pub(crate) fn anonymous(len: usize) -> io::Result<Mapped> {
        let raw = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        Ok(Mapped { raw, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn check(&self, offset: usize, count: usize) -> io::Result<()> {
        match offset.checked_add(count) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "access outside of the segment")),
        }
    }

    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        let base = self.raw.as_mut_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let to = unsafe { base.add(offset) };
        // SAFETY: contract 1, 2, 3; `bytes` is ordinary memory and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        let base = self.raw.as_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let from = unsafe { base.add(offset) };
        // SAFETY: contract 1, 2, 3; `bytes` is ordinary memory and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies out a few bytes whose number is known beforehand, which then takes no call. Into their place: in an answer they
    /// would stand behind its tag, at an odd address, and be copied once more from there.
    #[inline]
    pub(crate) fn copy_array<const N: usize>(&self, offset: usize, bytes: &mut [u8; N]) -> io::Result<()> {
        self.check(offset, N)?;
        let base = self.raw.as_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let from = unsafe { base.add(offset) };
        // SAFETY: contract 1, 2, 3; an array of bytes has no alignment and no invalid values.
        *bytes = unsafe { std::ptr::read(from.cast::<[u8; N]>()) };
        Ok(())
    }

    /// Asks the processor for a cache line that is soon to be read. Outside of the mapping, and on other processors, nothing.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.check(offset, 1).is_ok() {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let base = self.raw.as_ptr();
            // SAFETY: contract 1 (checked above) and 2.
            let at = unsafe { base.add(offset) };
            // SAFETY: a hint, which no program can tell from none: it faults nowhere and gives no value.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }

    /// Copies out, in place of what the vector has held, without zeroing it first.
    #[inline]
    pub(crate) fn copy_into(&self, offset: usize, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.check(offset, len)?;
        bytes.clear();
        bytes.reserve_exact(len);
        let base = self.raw.as_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let from = unsafe { base.add(offset) };
        // SAFETY: contract 1, 2, 3; the vector is empty and has room for `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        // SAFETY: the first `len` bytes were just written.
        unsafe { bytes.set_len(len) };
        Ok(())
    }

    #[inline]
    pub(crate) fn store_byte(&self, offset: usize, byte: u8) -> io::Result<()> {
        self.check(offset, 1)?;
        let base = self.raw.as_mut_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let to = unsafe { base.add(offset) };
        // SAFETY: contract 1, 2; an atomic byte lets lanes be marked by several threads at once.
        let cell = unsafe { AtomicU8::from_ptr(to) };
        cell.store(byte, Ordering::Release);
        Ok(())
    }

    #[inline]
    pub(crate) fn load_byte(&self, offset: usize) -> io::Result<u8> {
        self.check(offset, 1)?;
        let base = self.raw.as_mut_ptr();
        // SAFETY: contract 1 (checked above) and 2.
        let from = unsafe { base.add(offset) };
        // SAFETY: as in `store_byte`.
        let cell = unsafe { AtomicU8::from_ptr(from) };
        Ok(cell.load(Ordering::Acquire))
    }

    pub(crate) fn populate(&self) {
        #[cfg(target_os = "linux")]
        {
            // Kernels before 5.14 refuse: the first stores then fault one by one, which is slower and otherwise the same.
            let _ = self.raw.advise(memmap2::Advice::PopulateWrite);
        }
    }
}

/// Tells a forked child from its parent for the price of one load.
///
/// The kernel hands a child this page zeroed (`MADV_WIPEONFORK`, Linux 4.14), while the parent's holds a one. Elsewhere
/// the process id is compared.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    page: Option<Mapped>,
    pid: u32,
}

impl ForkGuard {
    pub(crate) fn new() -> ForkGuard {
        let pid = std::process::id();
        ForkGuard { page: Self::wiped_page().ok(), pid }
    }

    #[cfg(target_os = "linux")]
    fn wiped_page() -> io::Result<Mapped> {
        // The kernel wipes whole pages only; 64 KiB is a multiple of every page size in use.
        let page = Mapped::anonymous(64 * 1024)?;
        let base = page.raw.as_mut_ptr().cast();
        // SAFETY: the range is exactly the private anonymous mapping that `page` owns.
        unsafe { rustix::mm::madvise(base, page.len, rustix::mm::Advice::LinuxWipeOnFork) }?;
        page.store_byte(0, 1)?;
        Ok(page)
    }

    #[cfg(not(target_os = "linux"))]
    fn wiped_page() -> io::Result<Mapped> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Whether this is a child of the process that made the guard.
    #[inline]
    pub(crate) fn forked(&self) -> bool {
        match &self.page {
            Some(page) => !matches!(page.load_byte(0), Ok(1)),
            None => std::process::id() != self.pid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let map = Mapped::anonymous(8192).expect("anonymous memory");
        map.copy_in(4090, b"across a page").expect("in bounds");
        let mut out = [0; 13];
        map.copy_out(4090, &mut out).expect("in bounds");
        assert_eq!(&out, b"across a page");
        let mut bytes = b"what was there".to_vec();
        map.copy_into(4090, 13, &mut bytes).expect("in bounds");
        assert_eq!(bytes, b"across a page");
        let mut out = [0; 13];
        map.copy_array(4090, &mut out).expect("in bounds");
        assert_eq!(&out, b"across a page");
        map.store_byte(8191, 7).expect("in bounds");
        assert_eq!(map.load_byte(8191).expect("in bounds"), 7);
    }

    #[test]
    fn every_access_outside_is_refused() {
        let map = Mapped::anonymous(4096).expect("anonymous memory");
        for (offset, count) in [(4096, 1), (4095, 2), (usize::MAX, 1), (usize::MAX, 2), (0, 4097)] {
            assert!(map.copy_in(offset, &vec![0; count]).is_err());
            assert!(map.copy_out(offset, &mut vec![0; count]).is_err());
            assert!(map.copy_into(offset, count, &mut Vec::new()).is_err());
        }
        for offset in [4096, 4089, usize::MAX] {
            assert!(map.copy_array(offset, &mut [0; 8]).is_err());
        }
        assert!(map.copy_array(4088, &mut [0; 8]).is_ok());
        assert!(map.store_byte(4096, 0).is_err());
        assert!(map.load_byte(usize::MAX).is_err());
        assert!(map.copy_in(4096, &[]).is_ok());
    }

    #[test]
    fn a_hint_changes_nothing_wherever_it_points() {
        let map = Mapped::anonymous(4096).expect("anonymous memory");
        map.copy_in(64, b"as it was").expect("in bounds");
        for offset in [0, 64, 4095, 4096, 1 << 40, usize::MAX] {
            map.prefetch(offset);
        }
        let mut bytes = Vec::new();
        map.copy_into(64, 9, &mut bytes).expect("in bounds");
        assert_eq!(bytes, b"as it was");
    }

    #[test]
    fn the_guard_knows_its_own_process() {
        assert!(!ForkGuard::new().forked());
    }
}
