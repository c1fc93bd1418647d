//! Text on the screen that the boot loader left, for the one time when L0 has something to say to who stands before the
//! machine.

use super::multiboot::{Content, Screen};

/// Bytes of a cell of the text screen: character, colours.
const CELL: usize = 2;
/// White on black, in a text cell.
const WHITE_ON_BLACK: u8 = 0x0f;
/// Pixels of a character of the font, both ways; on screen each is drawn twice as high.
const GLYPH: u32 = 8;
const HEIGHT: u32 = 2 * GLYPH;
/// Bytes of the widest pixel.
const PIXEL_MAX: usize = 4;

/// The text screen of a BIOS whose loader says nothing about it.
pub(crate) const VGA_TEXT: Screen = Screen {
    address: 0xb_8000,
    pitch: 160,
    width: 80,
    height: 25,
    depth: 16,
    content: Content::Text,
};

/// Shows the last lines of `text`, as many as there is room for, from the top of the screen on; the rest of the screen
/// becomes black. `put` writes bytes at an offset from the screen's address; it never gets one beyond the screen.
///
/// Nothing is shown on a screen whose pixels L0 can't draw.
pub(crate) fn show(screen: &Screen, text: &[u8], mut put: impl FnMut(u64, &[u8])) {
    let (columns, rows) = match screen.content {
        Content::Text => (screen.width, screen.height),
        Content::Pixels(_) => (screen.width / GLYPH, screen.height / HEIGHT),
        Content::Other => return,
    };
    let (columns, rows) = (columns as usize, rows as usize);
    if columns == 0 {
        return;
    }
    let lines = || {
        text.split(|&byte| byte == b'\n')
            .flat_map(move |line| wrap(line, columns))
    };
    let skipped = lines().count().saturating_sub(rows);
    let mut shown = lines().skip(skipped);
    for row in 0..rows {
        let line = shown.next().unwrap_or_default();
        for column in 0..columns {
            let character = line.get(column).copied().unwrap_or(b' ');
            draw(screen, column as u32, row as u32, character, &mut put);
        }
    }
}

/// The pieces of a line, at least one.
fn wrap(line: &[u8], columns: usize) -> impl Iterator<Item = &[u8]> {
    let empty = line.is_empty().then_some(line);
    empty.into_iter().chain(line.chunks(columns))
}

fn draw(screen: &Screen, column: u32, row: u32, character: u8, put: &mut impl FnMut(u64, &[u8])) {
    let line = u64::from(row) * u64::from(screen.pitch);
    match screen.content {
        Content::Text => {
            let shown = if character.is_ascii_graphic() { character } else { b' ' };
            put(line + u64::from(column) * CELL as u64, &[shown, WHITE_ON_BLACK]);
        }
        Content::Pixels(colours) => {
            let bytes = usize::from(screen.depth.div_ceil(8)).min(PIXEL_MAX);
            let white = colours
                .iter()
                .filter(|&&(at, bits)| at < 32 && bits <= 32)
                .fold(0u64, |all, &(at, bits)| all | ((1 << bits) - 1) << at)
                .to_le_bytes();
            let glyph = font8x8::legacy::BASIC_LEGACY
                .get(usize::from(character))
                .copied()
                .unwrap_or_default();
            for y in 0..HEIGHT {
                let bits = glyph.get((y / 2) as usize).copied().unwrap_or(0);
                let line = u64::from(row * HEIGHT + y) * u64::from(screen.pitch);
                for x in 0..GLYPH {
                    let lit = bits & 1 << x != 0;
                    let pixel = if lit { white } else { [0; 8] };
                    let at = line + u64::from(column * GLYPH + x) * bytes as u64;
                    put(at, pixel.get(..bytes).unwrap_or_default());
                }
            }
        }
        Content::Other => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn shown(screen: &Screen, text: &str) -> Vec<u8> {
        let mut memory = std::vec![0xaa; (screen.pitch * screen.height) as usize];
        show(screen, text.as_bytes(), |at, bytes| {
            memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        });
        memory
    }

    #[test]
    fn the_last_lines_fit_the_text_screen() {
        let screen = Screen {
            width: 5,
            height: 3,
            pitch: 12,
            ..VGA_TEXT
        };
        let memory = shown(&screen, "gone\n\nabcdefg\x07\nend");
        let rows: Vec<String> = memory
            .chunks(12)
            .map(|row| row[..10].chunks(2).map(|cell| char::from(cell[0])).collect())
            .collect();
        assert_eq!(rows, ["abcde", "fg   ", "end  "]);
        assert!(memory.chunks(12).all(|row| row[1] == WHITE_ON_BLACK && row[10] == 0xaa));
    }

    #[test]
    fn pixels_have_all_bits_of_their_colours_and_stay_on_the_screen() {
        let screen = Screen {
            address: 0,
            width: 20,
            height: 33,
            pitch: 68,
            depth: 24,
            content: Content::Pixels([(16, 8), (8, 8), (0, 8)]),
        };
        let memory = shown(&screen, "L1");
        let pixel = |x: usize, y: usize| &memory[y * 68 + x * 3..][..3];
        // The font's L has its stem at the second and third pixel of the line in its middle.
        let line: Vec<bool> = (0..8).map(|x| pixel(x, 6) == [0xff; 3]).collect();
        let glyph = font8x8::legacy::BASIC_LEGACY[usize::from(b'L')][3];
        let expected: Vec<bool> = (0..8).map(|x| glyph & 1 << x != 0).collect();
        assert!(expected.contains(&true));
        assert_eq!(line, expected);
        assert_eq!(
            line,
            (0..8).map(|x| pixel(x, 7) == [0xff; 3]).collect::<Vec<_>>(),
            "twice as high"
        );
        assert_eq!(pixel(0, 31), [0; 3], "the rest is black");
        assert_eq!(pixel(0, 32), [0xaa; 3], "half a line at the end is left alone");
    }

    #[test]
    fn impossible_screens_show_nothing() {
        for content in [
            Content::Other,
            Content::Pixels([(0, 255), (40, 3), (250, 8)]),
            Content::Text,
        ] {
            let screen = Screen {
                width: 0,
                height: 100,
                content,
                ..VGA_TEXT
            };
            show(&screen, b"text", |_, _| panic!("nothing to write"));
        }
        let odd = Screen {
            depth: 255,
            width: 8,
            height: 16,
            pitch: 32,
            content: Content::Pixels([(0, 255), (40, 3), (31, 32)]),
            ..VGA_TEXT
        };
        let _ = shown(&odd, "x");
    }
}
