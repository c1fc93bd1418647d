//! locum-errors(7), made of the errors as they are in the source: name, meaning and text.

use anyhow::{Context, Result, ensure};
use clap_mangen::roff::{Roff, bold, italic, roman};
use syn::{Attribute, Expr, ExprLit, Item, Lit, Meta, Variant};

use locum_agent::error::names;

/// The enums in the order of [`names`].
const ENUMS: [(&str, &str); 5] = [
    ("Refusal", include_str!("../../src/error.rs")),
    ("PlanError", include_str!("../../../partitioner/src/error.rs")),
    ("Refused", include_str!("../../../partitioner/src/refresh/event.rs")),
    ("ClaimError", include_str!("../../src/pool/table.rs")),
    ("Failure", include_str!("../../src/error/failure.rs")),
];

const ABOUT: &str = "locum prints an error as its text and its name in brackets. With --json the output is \
    {\"error\":{\"name\":...,\"text\":...}}. Texts are improved from release to release; a name stays, so programs are to go by it. \
    What fails because of another program, or of Linux, has the name of where it failed. What is in capitals differs from case to case.";

/// The page.
///
/// # Errors
/// If an error has no text, or there is another number of them than of names.
pub fn page() -> Result<String> {
    let mut roff = Roff::new();
    roff.control("TH", ["locum-errors", "7"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("locum-errors - names of the errors of locum(8)")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(ABOUT)]);
    roff.control("SH", ["ERRORS"]);
    let all = ENUMS.iter().map(|(name, source)| variants(name, source));
    let all: Vec<_> = all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let names: Vec<_> = names().collect();
    ensure!(
        all.len() == names.len(),
        "{} errors have {} names",
        all.len(),
        names.len()
    );
    for (name, variant) in names.into_iter().zip(&all) {
        let text = text(variant).with_context(|| format!("{name} has no text"))?;
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(meaning(variant))]);
        roff.control("br", []);
        roff.text([italic(filled(&text))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("locum(8)")]);
    Ok(roff.to_roff())
}

/// Those that have a text of their own.
fn variants(name: &str, source: &str) -> Result<Vec<Variant>> {
    let file = syn::parse_file(source)?;
    let found = file.items.into_iter().find_map(|item| match item {
        Item::Enum(item) if item.ident == name => Some(item.variants),
        _ => None,
    });
    let all = found.with_context(|| format!("there is no enum {name}"))?;
    Ok(all.into_iter().filter(|variant| !is_transparent(variant)).collect())
}

fn error(variant: &Variant) -> Option<&Attribute> {
    variant
        .attrs
        .iter()
        .find(|attribute| attribute.path().is_ident("error"))
}

fn is_transparent(variant: &Variant) -> bool {
    error(variant).is_some_and(|attribute| {
        attribute
            .parse_args::<syn::Ident>()
            .is_ok_and(|word| word == "transparent")
    })
}

/// The format string, which is the first argument.
fn text(variant: &Variant) -> Option<String> {
    let first = |input: syn::parse::ParseStream<'_>| {
        let text: syn::LitStr = input.parse()?;
        // What follows are its values.
        let _: proc_macro2::TokenStream = input.parse()?;
        Ok(text.value())
    };
    error(variant)?.parse_args_with(first).ok()
}

/// What the variant's documentation says.
fn meaning(variant: &Variant) -> String {
    let lines = variant.attrs.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(text), ..
            }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    let text = lines.collect::<Vec<_>>().join(" ");
    // What links lead to is in the source.
    let end = text.find(", see [`").map_or(text.as_str(), |end| &text[..end]);
    end.trim_end_matches('.').to_owned() + "."
}

/// Values in capitals; those without a name as three dots.
fn filled(text: &str) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled += before;
        let Some((value, after)) = after.split_once('}') else {
            break;
        };
        let name = value.split(':').next().unwrap_or_default();
        let named = name.starts_with(|first: char| first.is_ascii_lowercase());
        filled += &if named { name.to_uppercase() } else { "...".to_owned() };
        rest = after;
    }
    filled + rest
}
