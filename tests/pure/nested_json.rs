//! Owns deeply nested JSON for the property tests.

use std::ops::Range;

use proptest::{prelude::*, sample::select};

/// A number inside of this number of arrays, or of objects.
pub fn nested(depths: Range<usize>) -> impl Strategy<Value = String> {
    (depths, select(&[("[", "]"), (r#"{"k":"#, "}")][..]))
        .prop_map(|(depth, (open, close))| format!("{}1{}", open.repeat(depth), close.repeat(depth)))
}
