//! Reads behind the end of an allocation on purpose, or, asked for nothing, inside of it.

fn main() {
    let bytes = vec![7u8; 64];
    let at = if std::env::args().nth(1).as_deref() == Some("outside") { 64 } else { 63 };
    // SAFETY: none for 64, which is the point.
    let byte = unsafe { std::ptr::read_volatile(bytes.as_ptr().add(std::hint::black_box(at))) };
    std::hint::black_box(byte);
}
