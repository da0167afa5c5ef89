//! The arguments of endpoints. Each type refuses bad input in one way for all endpoints.
//!
//! The signature of an endpoint shows its authorisation. An endpoint with a [`Caller`] requires a
//! valid token. An endpoint without a [`Caller`] declares in its documentation that it is open, by
//! `security(())`. A test compares the two.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use ipnet::IpNet;
use serde::de::DeserializeOwned;

use super::budget::RouteBudget;
use super::state::Api;
use crate::model::limits::DEVICE_CHARS_MAX;
use crate::model::session::{Caller, Origin};
use crate::model::{ChatId, Code, Error, Result, json};
use crate::service::RequestGuard;

/// The header in which proxies pass on the addresses of their clients.
pub(super) const FORWARDED_FOR: &str = "x-forwarded-for";

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self> {
        let refused = || Error::new(Code::NotAuthenticated);
        let value = parts.headers.get(header::AUTHORIZATION).ok_or_else(refused)?;
        let (scheme, token) =
            value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(refused)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refused());
        }

        let caller = api.services.sessions.authenticate(token.trim()).await?;

        let budgets = &api.services.budgets;
        if let Some(guard) = parts.extensions.get::<Arc<RequestGuard>>() {
            budgets.begin_request(caller, guard).await?;
        }
        // The services count the other methods, each under the rate of its operation.
        if matches!(parts.method, Method::GET | Method::HEAD) {
            (RouteBudget::of(&parts.extensions)?.count_read)(budgets, caller.user_id)?;
        }
        Ok(caller)
    }
}

impl FromRequestParts<Arc<Api>> for Origin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let agent = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let device = agent.map(|agent| agent.chars().take(DEVICE_CHARS_MAX).collect());
        Ok(Self {
            ip: peer.map(|peer| client_ip(peer, &parts.headers, &api.trusted_proxies)),
            device,
        })
    }
}

/// The address of the client: the last one in the chain of proxies that is not a trusted proxy's. A
/// client can write any text into the header, but trusted proxies append to it. So only the end of
/// the header is trusted.
pub(super) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: &IpAddr| is_in(*ip, trusted);
    if !is_trusted(&peer) {
        return peer;
    }

    let values = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();

    let mut client = peer;
    for hop in hops.iter().rev() {
        let Ok(ip) = hop.parse::<IpAddr>() else { break };
        client = ip;
        if !is_trusted(&ip) {
            break;
        }
    }
    client
}

/// Whether an address is in one of these networks.
pub(super) fn is_in(ip: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|net| net.contains(&ip.to_canonical()))
}

/// Ids from the path. An invalid id is answered `404`, like an id that does not exist.
pub struct Ids<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Ids<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        // After a valid chat id, the invalid id is the message's or the member's.
        let in_chat =
            parts.uri.path().split('/').nth(2).is_some_and(|id| id.parse::<ChatId>().is_ok());
        let code = match parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str) {
            Some(path) if in_chat && path.starts_with("/chats/{chat_id}/messages") => {
                Code::MessageNotFound
            }
            Some(path) if in_chat && path.starts_with("/chats/{chat_id}/members") => {
                Code::MemberNotFound
            }
            Some(path) if path.starts_with("/chats") => Code::ChatNotFound,
            Some(path) if path.starts_with("/users") => Code::UserNotFound,
            Some(path) if path.starts_with("/sessions") => Code::SessionNotFound,
            Some(path) if path.starts_with("/invites") => Code::InviteNotFound,
            _ => Code::RouteNotFound,
        };

        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(ids)| Self(ids)).map_err(|_| code.into())
    }
}

/// The parameters of the query string.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        let query = parts.uri.query().unwrap_or_default();
        let deserializer =
            serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(deserializer).map(Self).map_err(|error| {
            Error::fields(vec![json::field_error(
                error.path().to_string(),
                error.inner().to_string(),
            )])
        })
    }
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        if !is_json(request.headers()) {
            return Err(Code::UnsupportedMediaType.into());
        }
        json::decode(&read(request, state).await?).map(Self)
    }
}

/// A JSON body that may be absent or `null`, for types whose fields may all be absent.
pub struct MaybeBody<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for MaybeBody<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let json = is_json(request.headers());
        let bytes = read(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }

        if !json {
            return Err(Code::UnsupportedMediaType.into());
        }
        if bytes.trim_ascii() == b"null" {
            Ok(Self(T::default()))
        } else {
            json::decode(&bytes).map(Self)
        }
    }
}

/// Reads a body within the size and the time of its route's budget.
async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes> {
    let budget = RouteBudget::of(request.extensions())?;
    // Refuse a declared size that is too large before waiting for the body.
    if request.body().size_hint().lower() > budget.body_bytes_max as u64 {
        return Err(Code::TooLarge.into());
    }

    let reading = tokio::time::timeout(budget.body_read_max, Bytes::from_request(request, state));
    match reading.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => {
            Err(Code::TooLarge.into())
        }
        Ok(Err(rejection)) => {
            Err(Error::with_detail(Code::MalformedRequest, rejection.body_text()))
        }
        Err(_) => {
            Err(Error::with_detail(Code::MalformedRequest, "the body did not arrive in time"))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn only_addresses_appended_by_trusted_proxies_are_trusted() {
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let headers = forwarded("6.6.6.6, 203.0.113.9, 10.0.0.7");
        assert_eq!(client_ip(ip("10.0.0.1"), &headers, &proxies), ip("203.0.113.9"));
        assert_eq!(client_ip(ip("198.51.100.1"), &headers, &proxies), ip("198.51.100.1"));
        assert_eq!(client_ip(ip("10.0.0.1"), &HeaderMap::new(), &proxies), ip("10.0.0.1"));
        assert_eq!(client_ip(ip("10.0.0.1"), &forwarded("nonsense"), &proxies), ip("10.0.0.1"));
    }
}
