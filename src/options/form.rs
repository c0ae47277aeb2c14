//! How options stand in a file of settings: a time is a number of milliseconds, no limit is a word, names are in small letters.
//!
//! Formats that are not meant for people ([`Serializer::is_human_readable`]) get the values as they are.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Error, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Durability;

/// A value of an option that may be absent.
pub(super) trait Value: Sized {
    /// What says that it is absent.
    const NONE: &'static str;
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

macro_rules! values {
    ($($type:ty: $none:literal;)*) => {$(
        impl Value for $type {
            const NONE: &'static str = $none;
            fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.serialize(to)
            }
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }
        }
    )*};
}

values! {
    u32: "none";
    u64: "none";
    String: "";
}

impl Value for Duration {
    const NONE: &'static str = "none";

    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !to.is_human_readable() {
            return self.serialize(to);
        }
        match u64::try_from(self.as_millis()) {
            Ok(ms) if Duration::from_millis(ms) == *self => to.serialize_u64(ms),
            _ => to.serialize_f64(self.as_secs_f64() * 1000.0),
        }
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() { from.deserialize_any(Millis) } else { Duration::deserialize(from) }
    }
}

struct Millis;

impl Visitor<'_> for Millis {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of milliseconds")
    }

    fn visit_u64<E: Error>(self, ms: u64) -> Result<Duration, E> {
        Ok(Duration::from_millis(ms))
    }

    fn visit_i64<E: Error>(self, ms: i64) -> Result<Duration, E> {
        let ms = u64::try_from(ms).map_err(|_| E::invalid_value(Unexpected::Signed(ms), &self))?;
        self.visit_u64(ms)
    }

    fn visit_f64<E: Error>(self, ms: f64) -> Result<Duration, E> {
        if ms.is_nan() || ms.is_sign_negative() {
            return Err(E::invalid_value(Unexpected::Float(ms), &self));
        }
        // Longer than can be said is as long as can be said.
        Ok(Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX))
    }
}

/// A value, or the word that says that there is none.
struct Limit<T>(PhantomData<T>);

impl<'de, T: Value> Visitor<'de> for Limit<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value, or {:?} for no limit", T::NONE)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<T>, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
        if text == T::NONE { Ok(None) } else { T::read(text.into_deserializer()).map(Some) }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Option<T>, E> {
        T::read(value.into_deserializer()).map(Some)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Option<T>, E> {
        T::read(value.into_deserializer()).map(Some)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Option<T>, E> {
        T::read(value.into_deserializer()).map(Some)
    }
}

/// A [`Value`] as serde wants it.
struct Plain<T>(T);

impl<T: Value> Serialize for Plain<&T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.write(to)
    }
}

impl<'de, T: Value> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::read(from).map(Plain)
    }
}

/// For `serde(with)`: an option that may be absent.
pub(super) mod limit {
    use super::*;

    pub(in crate::options) fn serialize<T: Value, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            value if !to.is_human_readable() => value.as_ref().map(Plain).serialize(to),
            Some(value) => value.write(to),
            None => to.serialize_str(T::NONE),
        }
    }

    pub(in crate::options) fn deserialize<'de, T: Value, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        if from.is_human_readable() {
            from.deserialize_any(Limit(PhantomData))
        } else {
            Ok(Option::<Plain<T>>::deserialize(from)?.map(|value| value.0))
        }
    }
}

/// For `serde(with)`: the same, where the outer `None` leaves it to the defaults and is not written.
pub(super) mod own {
    use super::*;

    pub(in crate::options) fn serialize<T: Value, S: Serializer>(
        value: &Option<Option<T>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => limit::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(in crate::options) fn deserialize<'de, T: Value, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Option<T>>, D::Error> {
        limit::deserialize(from).map(Some)
    }
}

/// [`Durability`] in formats that are not meant for people.
#[derive(Serialize, Deserialize)]
enum Tagged {
    Sync,
    Every(Duration),
    Os,
}

impl Serialize for Durability {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let is_text = to.is_human_readable();
        match *self {
            Durability::Sync if is_text => to.serialize_str("sync"),
            Durability::Os if is_text => to.serialize_str("os"),
            Durability::Every(period) if is_text => period.write(to),
            Durability::Sync => Tagged::Sync.serialize(to),
            Durability::Os => Tagged::Os.serialize(to),
            Durability::Every(period) => Tagged::Every(period).serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Durability {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return from.deserialize_any(Said);
        }
        Ok(match Tagged::deserialize(from)? {
            Tagged::Sync => Durability::Sync,
            Tagged::Every(period) => Durability::Every(period),
            Tagged::Os => Durability::Os,
        })
    }
}

struct Said;

impl Visitor<'_> for Said {
    type Value = Durability;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"sync\", \"os\", or a number of milliseconds")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Durability, E> {
        match text {
            "sync" => Ok(Durability::Sync),
            "os" => Ok(Durability::Os),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_u64<E: Error>(self, ms: u64) -> Result<Durability, E> {
        Millis.visit_u64(ms).map(Durability::Every)
    }

    fn visit_i64<E: Error>(self, ms: i64) -> Result<Durability, E> {
        Millis.visit_i64(ms).map(Durability::Every)
    }

    fn visit_f64<E: Error>(self, ms: f64) -> Result<Durability, E> {
        Millis.visit_f64(ms).map(Durability::Every)
    }
}
