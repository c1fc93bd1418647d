//! Enumerations as they stand in memory and registers: a word that may hold a value of a later release.

/// Implements `from_raw` for an enumeration: `None` for a word that this release does not know. The variants are named
/// once more because cbindgen, which reads the enumerations, does not expand macros; one that is left out is an error.
macro_rules! from_raw {
    ($type:ident: $raw:ty { $($variant:ident),+ $(,)? }) => {
        impl $type {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The value of a raw word, `None` if this release does not know it.
            #[must_use]
            pub const fn from_raw(raw: $raw) -> Option<Self> {
                $(if raw == Self::$variant as $raw {
                    return Some(Self::$variant);
                })+
                None
            }
        }

        // A variant that is missing above makes this match incomplete.
        const _: fn($type) = |value| match value { $($type::$variant => {})+ };
    };
}
pub(crate) use from_raw;
