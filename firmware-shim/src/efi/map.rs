//! The map as the firmware left it: descriptors at a distance that only the firmware knows.

use super::descriptor::{DESCRIPTOR_MIN, Descriptor};

/// What is wrong with an EFI memory map, or with the room for its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EfiMapError {
    /// A distance between descriptors that none can have.
    #[error(
        "the EFI memory map has descriptors of {0} bytes, which is less than {DESCRIPTOR_MIN} or no multiple of 8; \
         update the boot loader"
    )]
    DescriptorSize(u32),
    /// There is not one whole descriptor.
    #[error("the EFI memory map is empty; update the boot loader")]
    Empty,
    /// The copy is longer than its place.
    #[error("the EFI memory map for the host needs {needed} bytes, there is room for {room}")]
    NoRoom {
        /// Bytes that the copy needs.
        needed: usize,
        /// Bytes that there are.
        room: usize,
    },
}

/// A map, not yet looked at: every descriptor may be nonsense.
#[derive(Clone, Copy, Debug)]
pub struct EfiMap<'a> {
    bytes: &'a [u8],
    stride: usize,
    version: u32,
}

impl<'a> EfiMap<'a> {
    /// A map of descriptors of `version`, `stride` bytes apart. An incomplete last one is passed over, as Linux does.
    ///
    /// # Errors
    /// [`EfiMapError::DescriptorSize`], [`EfiMapError::Empty`].
    pub fn new(bytes: &'a [u8], stride: u32, version: u32) -> Result<Self, EfiMapError> {
        let error = EfiMapError::DescriptorSize(stride);
        let stride = usize::try_from(stride).map_err(|_| error)?;
        if stride < DESCRIPTOR_MIN || !stride.is_multiple_of(8) {
            return Err(error);
        }
        if bytes.len() < stride {
            return Err(EfiMapError::Empty);
        }
        Ok(Self { bytes, stride, version })
    }

    /// Bytes from one descriptor to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Version of the descriptors.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The descriptors, in the firmware's order.
    pub fn descriptors(&self) -> impl Iterator<Item = Descriptor> + Clone + use<'a> {
        self.raw().map(Descriptor::read)
    }

    /// The descriptors as bytes, with what newer firmware may have put behind the fields known here.
    pub(super) fn raw(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.bytes.chunks_exact(self.stride)
    }
}
