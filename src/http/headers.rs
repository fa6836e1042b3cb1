//! What headers of an answer say.

use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// The media type of a page that comes from something in between.
const HTML: &[u8] = b"text/html";
/// OpenAI's finer `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

pub(crate) fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..HTML.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(HTML))
}

/// `retry-after-ms`, or `Retry-After` in seconds or as the date that proxies give. A date is measured from the answer's own `Date`, so
/// that the two clocks need not agree; only an answer without one is measured from ours.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(millis) = text(headers, RETRY_AFTER_MS) {
        return seconds(millis.parse::<f64>().ok()? / 1000.0);
    }
    if let Ok(asked) = text(headers, RETRY_AFTER)?.parse() {
        return seconds(asked);
    }
    let from = date(headers, DATE).unwrap_or_else(SystemTime::now);
    date(headers, RETRY_AFTER)?.duration_since(from).ok()
}

/// More than the number holds is still a wish to wait long.
fn seconds(asked: f64) -> Option<Duration> {
    (asked >= 0.0).then(|| Duration::from_secs_f64(asked.min(u32::MAX.into())))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

/// `Keep-Alive: timeout=N`, if N is in a range of which half makes sense as an idle time.
pub(crate) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, HeaderName::from_static("keep-alive"))?;
    let seconds: u64 = text.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?.parse().ok()?;
    (1..=600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn waits(replied: &[(HeaderName, &str)]) -> Option<Duration> {
        let replied =
            replied.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        retry_after(&HeaderMap::from_iter(replied))
    }

    #[test]
    fn when_to_try_again_is_read_as_seconds_and_as_a_date_by_the_clock_of_the_answer() {
        let millis = |value| waits(&[(RETRY_AFTER, value)]).map(|wait| wait.as_millis());
        assert_eq!((millis("7"), millis(" 0 "), millis("1.5")), (Some(7000), Some(0), Some(1500)));
        let most = u128::from(u32::MAX) * 1000;
        assert_eq!(millis("99999999999999999999"), Some(most), "long, and no instant is beyond it");
        let (at, date) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:48:20 GMT");
        assert_eq!(waits(&[(RETRY_AFTER, at), (DATE, date)]), Some(Duration::from_secs(77)));
        assert_eq!(waits(&[(RETRY_AFTER, date), (DATE, at)]), None, "is over");
        let coming = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        let wait = millis(&coming).unwrap();
        assert!((3_500_000..=3_600_000).contains(&wait), "by our own clock, where there is no Date: {wait}");
        for odd in ["", "-1", "soon", "NaN"] {
            assert_eq!(millis(odd), None, "{odd}");
        }
        let finer = [(RETRY_AFTER_MS, "250"), (RETRY_AFTER, "1")];
        assert_eq!(waits(&finer), Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_servers_keep_alive_is_read_and_nonsense_is_not() {
        let read = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([("keep-alive".parse().unwrap(), HeaderValue::from_static(text))]);
            keep_alive(&headers)
        };
        assert_eq!(read("timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(read("max=100, timeout=72"), Some(Duration::from_secs(72)));
        assert_eq!(read("timeout=0"), None);
        assert_eq!(read("timeout=99999999"), None);
    }
}
