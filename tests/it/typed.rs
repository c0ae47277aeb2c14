//! Queues of values.

#[cfg(any(feature = "postcard", feature = "bincode"))]
use kestrel_core::{Codec, TypedGetError};

#[cfg(any(feature = "postcard", feature = "bincode"))]
fn round_trip<C: Codec<(u32, String)> + Copy>(codec: C) {
    let w = crate::common::world();
    let q = w.queue("q").typed(codec);
    let value = (7, "seven".to_owned());
    q.put(&value).expect("encoded");
    let open = q.try_open().expect("decoded").expect("there");
    assert_eq!((*open).clone(), value);
    open.abort();
    assert_eq!(q.open().expect("decoded").close().expect("marked"), value);
    // Bytes that are no such value stay open in the error; so do trailing bytes.
    let mut trailing = Vec::new();
    codec.encode(&value, &mut trailing).expect("encoded");
    trailing.push(0);
    for bytes in [vec![0xFF; 9], Vec::new(), trailing] {
        q.raw().put(&bytes).expect("room");
        match q.try_open() {
            Err(TypedGetError::Decode(error)) => {
                assert_eq!(error.item.data(), bytes);
                error.item.close().expect("marked");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(q.raw().is_empty());
}

#[cfg(feature = "postcard")]
#[test]
fn postcard_values_come_back_and_other_bytes_are_refused() {
    round_trip(kestrel_core::Postcard);
}

#[cfg(feature = "bincode")]
#[test]
fn bincode_values_come_back_and_other_bytes_are_refused() {
    round_trip(kestrel_core::Bincode);
}

#[cfg(feature = "bincode")]
#[test]
fn a_hostile_bincode_length_is_an_error_and_no_abort() {
    // 253: a length of eight bytes follows.
    let hostile = [&[1u8, 253][..], &u64::MAX.to_le_bytes()].concat();
    let decoded: Result<(u32, String), _> = kestrel_core::Bincode.decode(&hostile);
    assert!(decoded.is_err());
}

#[cfg(feature = "serde")]
#[test]
fn options_and_stats_are_serde_types() {
    fn is_options<T: serde::Serialize + serde::de::DeserializeOwned>() {}
    fn is_stats<T: serde::Serialize>() {}
    is_options::<kestrel_core::QueueOptions>();
    is_options::<kestrel_core::ItemId>();
    is_stats::<kestrel_core::QueueStats>();
    is_stats::<kestrel_core::RecoveryReport>();
}
