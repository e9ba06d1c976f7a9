//! Property tests: the parts of an object are those that serde_json finds, wherever the chunks of its text end.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use workflow_run_stop_operator::json_stream::{Container, Limits, Malformed, Part, Piece, Splitter};

use crate::nested_json::nested;

const NESTED: &[&str] = &["items", "data"];
const UNLIMITED: Limits = Limits { key: usize::MAX, field: usize::MAX, child: usize::MAX };

/// Splits a text that arrives in chunks of these sizes, over and over, and returns its parts as lines.
fn split(text: &[u8], sizes: &[usize], limits: Limits) -> Result<Vec<String>, Malformed> {
    fn show(piece: Piece<'_>) -> String {
        piece.json().map_or("too large".into(), |json| String::from_utf8_lossy(json).into_owned())
    }
    let mut parts = vec![];
    each_part(text, sizes, limits, &mut |part| {
        parts.push(match part {
            Part::Field { key, value } => format!("{} = {}", show(key), show(value)),
            Part::Start { field, container: Container::Array } => format!("{field}[]"),
            Part::Start { field, container: Container::Object } => format!("{field}{{}}"),
            Part::Item { field, value } => format!("{field}[] {}", show(value)),
            Part::Member { field, key, value } => format!("{field}{{}} {} = {}", show(key), show(value)),
        });
    })?;
    Ok(parts)
}

fn each_part(text: &[u8], sizes: &[usize], limits: Limits, each: &mut impl FnMut(Part<'_>)) -> Result<(), Malformed> {
    let mut splitter = Splitter::new(NESTED, limits);
    let (mut rest, mut sizes) = (text, sizes.iter().cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.len().min(*sizes.next().unwrap_or(&rest.len())));
        splitter.push(chunk, each)?;
        rest = after;
    }
    splitter.finish()
}

/// Decodes every part and puts them together. Fails if a part is not JSON.
fn assemble(text: &[u8], sizes: &[usize]) -> Option<Value> {
    fn value(piece: Piece<'_>) -> Option<Value> {
        serde_json::from_slice(piece.json()?).ok()
    }
    fn add(object: &mut Map<String, Value>, part: Part<'_>) -> Option<()> {
        match part {
            Part::Field { key, value: of } => {
                object.insert(key.text()?.into_owned(), value(of)?);
            }
            Part::Start { field, container: Container::Array } => {
                object.insert(field.to_owned(), json!([]));
            }
            Part::Start { field, container: Container::Object } => {
                object.insert(field.to_owned(), json!({}));
            }
            Part::Item { field, value: of } => object[field].as_array_mut()?.push(value(of)?),
            Part::Member { field, key, value: of } => object[field][key.text()?.into_owned()] = value(of)?,
        }
        Some(())
    }
    let (mut object, mut valid) = (Map::new(), true);
    each_part(text, sizes, UNLIMITED, &mut |part| valid &= add(&mut object, part).is_some()).ok()?;
    valid.then(|| object.into())
}

/// Decodes the text as a whole.
fn expected(text: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Map<String, Value>>(text).ok().map(Value::from)
}

fn key() -> impl Strategy<Value = String> {
    select(&[r#""items""#, r#""data""#, r#""\u0069tems""#, r#""d\u0061ta""#, r#""""#, r#""x\"\\\n{[""#, r#""é😀""#][..])
        .prop_map(str::to_owned)
}

fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[ -~]{0,8}".prop_map(|plain| plain.replace(['"', '\\'], "")),
        select(&[r"\u00e9", r"\ud83d\ude00", r"\n", r"\\", r#"\""#, r"\/", "é", "😀", "]", "}", ","][..])
            .prop_map(str::to_owned),
    ];
    vec(part, 0..5).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

fn space() -> impl Strategy<Value = &'static str> {
    select(&["", "", "", " ", "\n\t\r "][..])
}

/// Any JSON, with white space between its tokens.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(&["null", "true", "false", "0", "-1.5e+3", "123456789"][..]).prop_map(str::to_owned),
        text(),
        nested(0..60),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        let array = (vec(inner.clone(), 0..5), space())
            .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!("{space},"))));
        prop_oneof![array, object(inner)]
    })
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (vec((key(), value), 0..6), space()).prop_map(|(fields, space)| {
        let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key}{space}:{space}{value}{space}")).collect();
        format!("{{{space}{}}}", fields.join(&format!(",{space}")))
    })
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![1 => vec(1..2usize, 1), 3 => vec(1..20usize, 1..6), 1 => vec(1000..2000usize, 1)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parts_of_an_object_make_up_the_object(json in object(any_json()), sizes in sizes()) {
        let expected = expected(json.as_bytes());
        prop_assert!(expected.is_some());
        prop_assert_eq!(assemble(json.as_bytes(), &sizes), expected);
    }

    #[test]
    fn the_parts_do_not_depend_on_the_chunks(json in object(any_json()), sizes in sizes(), limit in 1..40usize) {
        let limits = Limits { key: limit, field: 2 * limit, child: limit };
        for limits in [UNLIMITED, limits] {
            let whole = split(json.as_bytes(), &[], limits);
            prop_assert!(whole.is_ok());
            prop_assert_eq!(split(json.as_bytes(), &sizes, limits), whole);
        }
    }

    #[test]
    fn a_damaged_object_is_accepted_only_if_it_is_still_one(
        json in object(any_json()),
        damage in vec((any::<usize>(), select(&b"{}[],:\"\\ 1tx"[..]), 0..3u8), 1..4),
        sizes in sizes(),
    ) {
        let mut json = json.into_bytes();
        for (at, byte, how) in damage {
            let at = at % json.len();
            match how {
                0 => json.insert(at, byte),
                1 => json[at] = byte,
                _ if json.len() == 1 => {}
                _ => drop(json.remove(at)),
            }
        }
        prop_assert_eq!(assemble(&json, &sizes), expected(&json), "{}", String::from_utf8_lossy(&json));
    }

    #[test]
    fn any_bytes_are_an_object_only_if_serde_json_finds_one(bytes in vec(select(&b"{}[],:\"\\ 1"[..]), 0..12)) {
        prop_assert_eq!(assemble(&bytes, &[1]), expected(&bytes));
    }
}

#[test]
fn the_children_of_a_nested_field_come_one_by_one() {
    let json =
        br#" {"kind":"List", "items":[{"a":[1,2]}, null,"x" ], "data":{ "k" : "v","l":{}},"data":7,"items":{}} "#;
    for sizes in [&[][..], &[1], &[2, 3, 5]] {
        let parts = split(json, sizes, UNLIMITED).unwrap();
        assert_eq!(
            parts,
            [
                r#""kind" = "List""#,
                "items[]",
                r#"items[] {"a":[1,2]}"#,
                "items[] null",
                r#"items[] "x""#,
                "data{}",
                r#"data{} "k" = "v""#,
                r#"data{} "l" = {}"#,
                r#""data" = 7"#,
                "items{}",
            ]
        );
    }
}

#[test]
fn a_piece_of_the_largest_size_is_whole_and_a_larger_one_is_skipped() {
    let limits = Limits { key: 4, field: 6, child: 5 };
    let json =
        br#"{"ab":"1234","abc":1,"ab":"12345","ab":[[[1]]],"data":{"ab":"123","ab":"1234"},"data":[12345,123456]}"#;
    let too_long_for_a_key = "too large";
    for sizes in [&[][..], &[1], &[2, 3, 5]] {
        // `"data"` is longer than the limit of a key here, so that it is not split.
        let parts = split(json, sizes, limits).unwrap();
        assert_eq!(parts[..4], [r#""ab" = "1234""#, "too large = 1", r#""ab" = too large"#, r#""ab" = too large"#]);
        assert!(parts[4].starts_with(too_long_for_a_key), "{parts:?}");
        let parts = split(json, sizes, Limits { key: 6, ..limits }).unwrap();
        assert_eq!(
            parts[4..],
            [
                "data{}",
                r#"data{} "ab" = "123""#,
                r#"data{} "ab" = too large"#,
                "data[]",
                "data[] 12345",
                "data[] too large"
            ]
        );
    }
}

#[test]
fn values_are_nested_to_any_depth() {
    for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
        let nested = format!("{}1{}", open.repeat(1_000_000), close.repeat(1_000_000));
        let json = format!(r#"{{"x":{nested},"items":[{nested}]}}"#);
        let limits = Limits { key: 10, field: 10, child: nested.len() };
        let parts = split(json.as_bytes(), &[1000], limits).unwrap();
        assert_eq!(parts[..2], [r#""x" = too large"#, "items[]"]);
        assert_eq!(parts[2].len(), "items[] ".len() + nested.len());
    }
}

#[test]
fn only_one_object_and_white_space_around_it_is_accepted() {
    for json in ["{}", " {\n} ", "\u{FEFF}{}", "\u{FEFF} {}"] {
        assert_eq!(split(json.as_bytes(), &[1], UNLIMITED), Ok(vec![]), "{json}");
    }
    for json in [
        "",
        " ",
        "\u{FEFF}",
        "[]",
        "1",
        "null",
        "\"{}\"",
        "<html>",
        "{",
        "{}{}",
        "{},",
        "{]",
        " \u{FEFF}{}",
        "\u{FEFF}\u{FEFF}{}",
    ] {
        assert_eq!(split(json.as_bytes(), &[1], UNLIMITED), Err(Malformed), "{json}");
    }
}
