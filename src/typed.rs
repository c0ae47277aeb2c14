//! Queues of values: [`TypedQueue`] and its [`Codec`]s.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use thiserror::Error;

use crate::error::{CloseError, GetError, PutError};
use crate::ids::ItemId;
use crate::item::Item;
use crate::options::PutOptions;
use crate::queue::Queue;
use crate::queue::open_item::OpenItem;

/// Turns values into payloads and back.
///
/// Decoding meets bytes of any kind: it must answer an error, never panic, and allocate no more than the bytes justify.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use kestrel_core::{Codec, QueueSet};
///
/// struct Number;
/// impl Codec<u32> for Number {
///     type Error = std::array::TryFromSliceError;
///     fn encode(&self, value: &u32, out: &mut Vec<u8>) -> Result<(), Self::Error> {
///         out.extend_from_slice(&value.to_le_bytes());
///         Ok(())
///     }
///     fn decode(&self, bytes: &[u8]) -> Result<u32, Self::Error> {
///         Ok(u32::from_le_bytes(bytes.try_into()?))
///     }
/// }
///
/// let numbers = QueueSet::open(dir.path())?.queue("numbers")?.typed(Number);
/// numbers.put(&7)?;
/// let open = numbers.try_open()?.ok_or("empty")?;
/// assert_eq!(*open, 7);
/// assert_eq!(open.close()?, 7);
/// # Ok(())
/// # }
/// ```
pub trait Codec<T>: Send + Sync {
    /// Why a value could not be encoded or decoded.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Appends the value's bytes to `out`, which is empty.
    ///
    /// # Errors
    /// If the value has no such form.
    fn encode(&self, value: &T, out: &mut Vec<u8>) -> Result<(), Self::Error>;

    /// Reads a value from all of `bytes`.
    ///
    /// # Errors
    /// If they are not a value, or more than one.
    fn decode(&self, bytes: &[u8]) -> Result<T, Self::Error>;

    /// Names the format where several may meet: stored beside the bytes of each job, so that a change of codec is told from
    /// damage. 1 to 255 are this crate's; 0: it has no name.
    fn id(&self) -> u32 {
        0
    }
}

/// A queue of values of one type, over an ordinary [`Queue`].
pub struct TypedQueue<T, C> {
    queue: Queue,
    codec: C,
    values: PhantomData<fn(T) -> T>,
}

impl<T, C: Codec<T>> TypedQueue<T, C> {
    pub(crate) fn new(queue: Queue, codec: C) -> Self {
        TypedQueue { queue, codec, values: PhantomData }
    }

    /// The queue below.
    pub fn raw(&self) -> &Queue {
        &self.queue
    }

    /// The codec.
    pub fn codec(&self) -> &C {
        &self.codec
    }

    fn encode(&self, value: &T) -> Result<Vec<u8>, TypedPutError<C::Error>> {
        let mut payload = Vec::new();
        self.codec.encode(value, &mut payload).map_err(TypedPutError::Encode)?;
        Ok(payload)
    }

    /// Puts a value: see [`Queue::put`].
    ///
    /// # Errors
    /// [`TypedPutError::Encode`] from the codec, else as [`Queue::put`].
    pub fn put(&self, value: &T) -> Result<ItemId, TypedPutError<C::Error>> {
        Ok(self.queue.put(self.encode(value)?)?)
    }

    /// Puts a value without waiting for the device: see [`Queue::append`].
    ///
    /// # Errors
    /// As [`put`](TypedQueue::put).
    pub fn append(&self, value: &T) -> Result<ItemId, TypedPutError<C::Error>> {
        Ok(self.queue.append(self.encode(value)?)?)
    }

    /// Puts a value with options of its own: see [`Queue::put_with`].
    ///
    /// # Errors
    /// As [`put`](TypedQueue::put).
    pub fn put_with(&self, value: &T, options: &PutOptions) -> Result<ItemId, TypedPutError<C::Error>> {
        Ok(self.queue.put_with(self.encode(value)?, options)?)
    }

    fn decode(&self, item: OpenItem) -> Result<TypedOpenItem<T>, TypedGetError<C::Error>> {
        match self.codec.decode(item.data()) {
            Ok(value) => Ok(TypedOpenItem { item, value }),
            Err(source) => Err(TypedGetError::Decode(DecodeError { item, source })),
        }
    }

    /// Opens the next value, waiting for one: see [`Queue::open`].
    ///
    /// # Errors
    /// As [`Queue::open`]; [`TypedGetError::Decode`] holds the item, still open, if its payload is no such value.
    pub fn open(&self) -> Result<TypedOpenItem<T>, TypedGetError<C::Error>> {
        self.decode(self.queue.open()?)
    }

    /// Opens the next value if there is one: see [`Queue::try_open`].
    ///
    /// # Errors
    /// As [`open`](TypedQueue::open).
    pub fn try_open(&self) -> Result<Option<TypedOpenItem<T>>, TypedGetError<C::Error>> {
        self.queue.try_open()?.map(|item| self.decode(item)).transpose()
    }

    /// Opens the next value, waiting up to `timeout`: see [`Queue::open_timeout`].
    ///
    /// # Errors
    /// As [`open`](TypedQueue::open).
    pub fn open_timeout(&self, timeout: Duration) -> Result<Option<TypedOpenItem<T>>, TypedGetError<C::Error>> {
        self.queue.open_timeout(timeout)?.map(|item| self.decode(item)).transpose()
    }

    /// Opens the next value, for tasks: see [`Queue::open_async`].
    ///
    /// # Cancel safety
    /// As [`Queue::open_async`].
    ///
    /// # Errors
    /// As [`open`](TypedQueue::open).
    pub async fn open_async(&self) -> Result<TypedOpenItem<T>, TypedGetError<C::Error>> {
        self.decode(self.queue.open_async().await?)
    }
}

impl<T, C: Clone> Clone for TypedQueue<T, C> {
    fn clone(&self) -> Self {
        TypedQueue { queue: self.queue.clone(), codec: self.codec.clone(), values: PhantomData }
    }
}

impl<T, C> fmt::Debug for TypedQueue<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// An open item and the value in it; ends as an [`OpenItem`] does.
#[must_use = "an open item that is dropped goes back to its queue; close it when it is done"]
pub struct TypedOpenItem<T> {
    item: OpenItem,
    value: T,
}

impl<T> TypedOpenItem<T> {
    /// The item, with its payload, times and attempts.
    pub fn item(&self) -> &Item {
        &self.item
    }

    /// The item's id.
    pub fn id(&self) -> ItemId {
        self.item.id()
    }

    /// Ends the item and hands the value over: see [`OpenItem::close`].
    ///
    /// # Errors
    /// As [`OpenItem::close`].
    pub fn close(self) -> Result<T, CloseError> {
        self.item.close()?;
        Ok(self.value)
    }

    /// Gives the item back: see [`OpenItem::abort`].
    pub fn abort(self) {
        self.item.abort();
    }
}

impl<T> Deref for TypedOpenItem<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> fmt::Debug for TypedOpenItem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedOpenItem").field("item", &self.item).finish_non_exhaustive()
    }
}

/// Why a value was not put.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TypedPutError<E: std::error::Error + 'static> {
    /// The codec refused it.
    #[error("the value could not be encoded")]
    Encode(#[source] E),
    /// The put failed.
    #[error(transparent)]
    Put(#[from] PutError),
}

/// Why no value was opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TypedGetError<E: std::error::Error + 'static> {
    /// The open failed.
    #[error(transparent)]
    Get(#[from] GetError),
    /// The payload is no such value; the item is in the error.
    #[error(transparent)]
    Decode(DecodeError<E>),
}

/// A payload that is no value of the queue's type, with its item, still open: close it, abort it or drop it.
#[derive(Debug, Error)]
#[error("the payload of item {} could not be decoded", .item.id())]
pub struct DecodeError<E: std::error::Error + 'static> {
    /// The item.
    pub item: OpenItem,
    /// The codec's reason.
    pub source: E,
}

/// Values as postcard: compact, and with a stable format of its own.
#[cfg(feature = "postcard")]
#[cfg_attr(docsrs, doc(cfg(feature = "postcard")))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Postcard {
    type Error = postcard::Error;

    fn encode(&self, value: &T, out: &mut Vec<u8>) -> Result<(), Self::Error> {
        *out = postcard::to_extend(value, std::mem::take(out))?;
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, Self::Error> {
        match postcard::take_from_bytes(bytes)? {
            (value, []) => Ok(value),
            // postcard itself accepts trailing bytes; a queue must not.
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }

    fn id(&self) -> u32 {
        1
    }
}

/// Values as bincode 2.0.1, whose development has ended (RUSTSEC-2025-0141); [`Postcard`] is the better choice for new
/// queues. Decoding is limited to 16 MiB, because without a limit a damaged length aborts the process.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Bincode;

/// Why bincode refused.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BincodeError {
    /// The value could not be encoded.
    #[error(transparent)]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are no such value, or it is larger than 16 MiB.
    #[error(transparent)]
    Decode(#[from] bincode::error::DecodeError),
    /// Bytes are left behind the value.
    #[error("{0} bytes are left behind the value")]
    Trailing(usize),
}

#[cfg(feature = "bincode")]
impl Bincode {
    /// Most bytes that a decoded value may take.
    pub const LIMIT: usize = 16 << 20;

    fn config() -> impl bincode::config::Config {
        bincode::config::standard().with_limit::<{ Bincode::LIMIT }>()
    }
}

#[cfg(feature = "bincode")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Bincode {
    type Error = BincodeError;

    fn encode(&self, value: &T, out: &mut Vec<u8>) -> Result<(), Self::Error> {
        bincode::serde::encode_into_std_write(value, out, Self::config())?;
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, Self::Error> {
        let (value, used) = bincode::serde::decode_from_slice(bytes, Self::config())?;
        if used < bytes.len() {
            return Err(BincodeError::Trailing(bytes.len() - used));
        }
        Ok(value)
    }

    fn id(&self) -> u32 {
        2
    }
}
