//! Elements of a small drawing that needs nothing but itself: no script, no font, no link, light or dark as the reader's
//! screen is.

use std::fmt::{Display, Write as _};

/// Colours and type. Whoever cannot read the part about dark screens sees the light drawing, on its own ground.
const STYLE: &str = "\
text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2328}\
.title{font-size:16px;font-weight:600}.lane{font-weight:600}.note{fill:#59636e}.in{fill:#fff;font-weight:600}.small{font-size:10px}\
.ground{fill:#fff;stroke:#d0d7de}.rule{stroke:#d0d7de}.band{fill:#eef1f4}.scale{fill:#eef1f4;stroke:#59636e;stroke-width:.7}.incumbent{fill:#3b6ea8}.successor{fill:#2f7d57}\
.l0{fill:#a8670f}.dormant{stroke:#a8670f;stroke-width:2;stroke-dasharray:2 4}.loading{fill:none;stroke:#2f7d57;stroke-dasharray:3 3}\
.still{fill:#fff;stroke:#cf222e;stroke-width:1.5}.still-word{fill:#cf222e;font-weight:600}.hatch{stroke:#fff;stroke-opacity:.4;stroke-width:2}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.note{fill:#9198a1}.in{fill:#0d1117}.ground{fill:#0d1117;stroke:#30363d}.rule{stroke:#30363d}.band{fill:#1c2129}.scale{fill:#1c2129;stroke:#9198a1}\
.incumbent{fill:#6ea8e5}.successor{fill:#5fbf8f}.l0{fill:#d9a441}.dormant{stroke:#d9a441}.loading{stroke:#5fbf8f}\
.still{fill:#0d1117;stroke:#ff7b72}.still-word{fill:#ff7b72}.hatch{stroke:#0d1117;stroke-opacity:.35}}";

/// Stripes over what is nested.
const HATCH: &str = "<pattern id='nested' width='7' height='7' patternUnits='userSpaceOnUse' patternTransform='rotate(45)'>\
<path class='hatch' d='M0 0V7'/></pattern>";

/// Where a text stands to its point.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
}

/// A drawing that grows. Lengths are pixels, of one decimal at the most.
pub(crate) struct Svg(String);

impl Svg {
    /// An empty sheet. `title` is what a reader hears who does not see.
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        Self(format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' role='img'>\n\
             <title>{}</title>\n<style>{STYLE}</style>\n<defs>{HATCH}</defs>\n\
             <rect class='ground' x='.5' y='.5' width='{}' height='{}' rx='8'/>\n",
            escape(title),
            width - 1.0,
            height - 1.0
        ))
    }

    /// Text on the line `y`.
    pub(crate) fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: Anchor, text: impl Display) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor='middle'",
        };
        let text = escape(&text.to_string());
        let _ = writeln!(
            self.0,
            "<text class='{class}' x='{}' y='{}'{anchor}>{text}</text>",
            px(x),
            px(y)
        );
    }

    /// A box from `x` to `end`.
    pub(crate) fn bar(&mut self, (x, end): (f64, f64), (y, height): (f64, f64), class: &str) {
        let _ = writeln!(
            self.0,
            "<rect class='{class}' x='{}' y='{}' width='{}' height='{}' rx='2'/>",
            px(x),
            px(y),
            px(end - x),
            px(height)
        );
    }

    /// Stripes over such a box: what is in it is nested.
    pub(crate) fn nested(&mut self, (x, end): (f64, f64), (y, height): (f64, f64)) {
        let _ = writeln!(
            self.0,
            "<rect fill='url(#nested)' x='{}' y='{}' width='{}' height='{}'/>",
            px(x),
            px(y),
            px(end - x),
            px(height)
        );
    }

    /// A line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(px);
        let _ = writeln!(self.0, "<path class='{class}' d='M{x1} {y1}L{x2} {y2}'/>");
    }

    /// The whole document.
    pub(crate) fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// To a tenth of a pixel, so that the drawing is small and the same wherever it is made.
fn px(length: f64) -> f64 {
    (length * 10.0).round() / 10.0
}

/// As XML has it, which allows no control characters.
fn escape(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
