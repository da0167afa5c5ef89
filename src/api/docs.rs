//! The `OpenAPI` document, and the page that shows it. The document is generated from the routes
//! and completed with the errors and headers that all routes share.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, Header, HeaderBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder,
    OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::Problem;
use crate::model::FieldError;

const BEARER: &str = "bearer";

/// The document without routes.
pub fn base() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An access token"))
        .build();
    let mut components = Components::new();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    components.schemas.insert(FieldError::name().into_owned(), FieldError::schema());

    let info = InfoBuilder::new()
        .title("Starling")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("The HTTP API. The WebSocket gateway is described by `/asyncapi.json`."))
        .license(Some(
            LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
        ))
        .build();

    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new(BEARER, [] as [&str; 0])]))
        .build()
}

/// Completes the operations of a document: adds their common errors and makes their ids unique.
pub fn finished(mut doc: OpenApi) -> OpenApi {
    for item in doc.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_common_errors(operation);
            name_by_resource(operation);
        }
    }
    doc
}

/// Prefixes an operation's id with its resource. The id is a function's name, which is unique only
/// within its file.
fn name_by_resource(operation: &mut Operation) {
    if let (Some(tag), Some(id)) = (operation.tags.iter().flatten().next(), &operation.operation_id)
    {
        operation.operation_id = Some(format!("{tag}_{id}"));
    }
}

fn add_common_errors(operation: &mut Operation) {
    // Without `security` of its own, an operation inherits the required token of the document.
    let is_open = operation.security.is_some();
    let has_body = operation.request_body.is_some();
    let is_in_query = |parameter: &RefOr<Parameter>| match parameter {
        RefOr::T(parameter) => parameter.parameter_in == ParameterIn::Query,
        RefOr::Ref(_) => false,
    };
    let has_query = operation.parameters.iter().flatten().any(is_in_query);

    let mut add = |status: &str, description: &str| {
        let responses = &mut operation.responses.responses;
        responses
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(problem(status, description)));
    };

    add("400", "The request can't be read");
    if !is_open {
        add("401", "A valid token is needed");
    }
    if has_body {
        add("413", "The body is too large");
        add("415", "The body must be application/json");
    }
    if has_body || has_query {
        add("422", "Some fields are not valid");
    }
    add("429", "Too many requests");
    add("500", "The server made a mistake");
    add("503", "The server can't do this right now");

    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            if status.starts_with(['4', '5']) {
                *response = problem(status, &response.description);
            }
            response
                .headers
                .insert("x-request-id".to_owned(), header("Identifies the request in the logs"));
        }
    }
}

fn problem(status: &str, description: &str) -> Response {
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let description = if description.is_empty() { "Refused: see `code`" } else { description };

    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build();

    match status {
        "401" => drop(response.headers.insert("www-authenticate".to_owned(), header("Bearer"))),
        "429" | "503" => drop(response.headers.insert("retry-after".to_owned(), header("Seconds"))),
        _ => {}
    }
    response
}

fn header(description: &str) -> RefOr<Header> {
    let schema = ObjectBuilder::new().schema_type(Type::String).build();
    RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build())
}

/// The routes of the documents and of the page that shows them.
pub fn router(doc: &OpenApi, asyncapi: String) -> Router {
    let openapi = doc.to_json().unwrap_or_default();
    let json = |body: String| {
        get(move || {
            let body = body.clone();
            async move { ([(CONTENT_TYPE, "application/json")], body) }
        })
    };

    Router::new()
        .route("/openapi.json", json(openapi))
        .route("/asyncapi.json", json(asyncapi))
        .merge(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
}
