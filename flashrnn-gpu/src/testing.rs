use std::fmt::Display;

/// Returns what a test needs, if it was found. Otherwise prints why the test is skipped and returns
/// `None`.
///
/// # Panics
/// If nothing was found and the environment variable `FLASHRNN_REQUIRE`, a comma-separated list,
/// contains one of `names`.
pub fn or_skip<T, E: Display>(found: Result<T, E>, names: &[&str]) -> Option<T> {
    let required = std::env::var("FLASHRNN_REQUIRE").unwrap_or_default();
    match found {
        Ok(found) => Some(found),
        Err(why) if required.split(',').any(|name| names.contains(&name)) => {
            panic!("FLASHRNN_REQUIRE={required}, but {why}")
        }
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}
