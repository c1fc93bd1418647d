//! The screen as the boot loader left it: `struct screen_info` (`include/uapi/linux/screen_info.h`), at the start of
//! the zero page.

use crate::bytes::put;

/// `orig_x`, u8: cursor column.
const ORIG_X: usize = 0x00;
/// `orig_y`, u8: cursor row.
const ORIG_Y: usize = 0x01;
/// `orig_video_mode`, u8: BIOS video mode.
const ORIG_VIDEO_MODE: usize = 0x06;
/// `orig_video_cols`, u8.
const ORIG_VIDEO_COLS: usize = 0x07;
/// `orig_video_lines`, u8.
const ORIG_VIDEO_LINES: usize = 0x0e;
/// `orig_video_isVGA`, u8: what kind of screen it is.
const ORIG_VIDEO_IS_VGA: usize = 0x0f;
/// `orig_video_points`, u16: font height.
const ORIG_VIDEO_POINTS: usize = 0x10;
/// `lfb_width`, `lfb_height`, `lfb_depth`, u16 each: pixels, pixels, bits per pixel.
const LFB_WIDTH: usize = 0x12;
/// `lfb_base`, `lfb_size`, u32 each: low half of the address, and the size.
const LFB_BASE: usize = 0x18;
/// `lfb_linelength`, u16: bytes from one line to the next.
const LFB_LINELENGTH: usize = 0x24;
/// Size and position, u8 each, of the red, green, blue and unused bits of a pixel.
const COLOURS: usize = 0x26;
/// `capabilities`, u32; then `ext_lfb_base`, u32: high half of the address.
const CAPABILITIES: usize = 0x36;

/// Bytes of the structure.
pub(super) const SCREEN_INFO_LEN: usize = 0x40;

/// Any VGA in text mode.
const IS_VGA: u8 = 1;
/// `VIDEO_TYPE_VLFB`: a framebuffer set up by the BIOS' VESA extensions.
const VIDEO_TYPE_VLFB: u8 = 0x23;
/// `VIDEO_TYPE_EFI`: a framebuffer of the EFI graphics output protocol.
const VIDEO_TYPE_EFI: u8 = 0x70;
/// `VIDEO_CAPABILITY_64BIT_BASE`.
const CAPABILITY_64BIT_BASE: u32 = 1 << 1;
/// BIOS mode of a colour text screen of 80 columns.
const TEXT_MODE: u8 = 3;
/// Font height of the VGA in that mode.
const FONT_HEIGHT: u16 = 16;
/// Unit of `lfb_size` of a VESA framebuffer.
const VESA_UNIT: u64 = 64 * 1024;

/// Bits of a pixel that hold one colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Its lowest bit.
    pub position: u8,
    /// Number of bits.
    pub size: u8,
}

impl Channel {
    fn end(self) -> u8 {
        self.position.saturating_add(self.size)
    }
}

/// Who set up a framebuffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoFirmware {
    /// The EFI graphics output protocol.
    Efi,
    /// The BIOS' VESA extensions.
    Vesa,
}

/// A screen of pixels that hold their colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// Who set it up.
    pub firmware: VideoFirmware,
    /// Physical address.
    pub address: u64,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits per pixel.
    pub depth: u8,
    /// Red, green and blue.
    pub colours: [Channel; 3],
}

/// The screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Screen {
    /// Unknown, or none.
    #[default]
    None,
    /// VGA text in colours, at 0xb8000.
    Text {
        /// Characters of a row.
        columns: u8,
        /// Rows.
        rows: u8,
    },
    /// Pixels.
    Framebuffer(Framebuffer),
}

/// `struct screen_info` has no room for this screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a screen of {width} x {height} pixels, {pitch} bytes a line, cannot be described to the kernel; choose another mode \
     with GRUB's gfxpayload"
)]
pub struct ScreenError {
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub pitch: u32,
}

impl Screen {
    /// Whether the kernel can be told of it.
    ///
    /// # Errors
    /// [`ScreenError`].
    pub fn check(&self) -> Result<(), ScreenError> {
        self.info().map(|_| ())
    }

    /// The structure, all zero if there is no screen.
    ///
    /// # Errors
    /// [`ScreenError`].
    pub(super) fn info(&self) -> Result<[u8; SCREEN_INFO_LEN], ScreenError> {
        let mut info = [0; SCREEN_INFO_LEN];
        let out = info.as_mut_slice();
        match self {
            Self::None => {}
            Self::Text { columns, rows } => {
                put(out, ORIG_X, &[0]);
                // What is on the screen stays: the kernel goes on below it.
                put(out, ORIG_Y, &[rows.saturating_sub(1)]);
                put(out, ORIG_VIDEO_MODE, &[TEXT_MODE]);
                put(out, ORIG_VIDEO_COLS, &[*columns]);
                put(out, ORIG_VIDEO_LINES, &[*rows]);
                put(out, ORIG_VIDEO_IS_VGA, &[IS_VGA]);
                put(out, ORIG_VIDEO_POINTS, &FONT_HEIGHT.to_le_bytes());
            }
            Self::Framebuffer(framebuffer) => framebuffer.write(out)?,
        }
        Ok(info)
    }
}

impl Framebuffer {
    fn write(&self, out: &mut [u8]) -> Result<(), ScreenError> {
        let error = ScreenError {
            width: self.width,
            height: self.height,
            pitch: self.pitch,
        };
        let word = |value: u32| u16::try_from(value).map_err(|_| error);
        let (width, height, pitch) = (word(self.width)?, word(self.height)?, word(self.pitch)?);
        let bytes = u64::from(pitch) * u64::from(height);
        let (kind, size) = match self.firmware {
            VideoFirmware::Efi => (VIDEO_TYPE_EFI, bytes),
            VideoFirmware::Vesa => (VIDEO_TYPE_VLFB, bytes.div_ceil(VESA_UNIT)),
        };
        // A product of two 16-bit numbers.
        let size = u32::try_from(size).map_err(|_| error)?;
        let (low, high) = (self.address as u32, (self.address >> 32) as u32);

        put(out, ORIG_VIDEO_IS_VGA, &[kind]);
        put(out, LFB_WIDTH, &width.to_le_bytes());
        put(out, LFB_WIDTH + 2, &height.to_le_bytes());
        put(out, LFB_WIDTH + 4, &u16::from(self.depth).to_le_bytes());
        put(out, LFB_BASE, &low.to_le_bytes());
        put(out, LFB_BASE + 4, &size.to_le_bytes());
        put(out, LFB_LINELENGTH, &pitch.to_le_bytes());
        let [red, green, blue] = self.colours;
        for (index, channel) in [red, green, blue, self.unused()].into_iter().enumerate() {
            put(out, COLOURS + index * 2, &[channel.size, channel.position]);
        }
        if high != 0 {
            put(out, CAPABILITIES, &CAPABILITY_64BIT_BASE.to_le_bytes());
            put(out, CAPABILITIES + 4, &high.to_le_bytes());
        }
        Ok(())
    }

    /// The bits of a pixel above its colours, or below them.
    fn unused(&self) -> Channel {
        let top = self.colours.iter().map(|channel| channel.end()).max().unwrap_or(0);
        let bottom = self.colours.iter().map(|channel| channel.position).min().unwrap_or(0);
        if top < self.depth {
            Channel {
                position: top,
                size: self.depth - top,
            }
        } else {
            Channel {
                position: 0,
                size: bottom,
            }
        }
    }
}
