//! One document of a manifest: a Gateway, or a List of them. Fields that no Gateway has are heard of, and not read.

use std::collections::BTreeMap;
use std::fmt;

use corax_core::api::{API_VERSION, Gateway, GatewaySpec, GatewayStatus, KIND, Metadata};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_ignored::Path;
use serde_json::Value;

/// `kind` of what has Gateways as its `items`.
const LISTS: [&str; 2] = ["List", "GatewayList"];

fn is_list(kind: &str) -> bool {
    LISTS.contains(&kind)
}

/// Times that the aliases of one YAML document repeat a part of it, at most, in events of its parser.
const REPEATED: usize = 10_000;

/// What Kubernetes keeps in `metadata` and Corax does not read.
const METADATA: [&str; 13] = [
    "clusterName",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What the controller reads of `spec`, and Corax does not.
const SPEC: [&str; 3] = ["nodeSelector", "proxyConfig", "tunnelConfig"];

/// How many unknown fields of a Gateway are told by name.
pub(super) const FIELDS_TOLD: usize = 8;

/// A document's objects, each with the fields of it that are not known. Of an empty List there are none.
pub(super) struct Document(Vec<(Gateway, Unknown)>);

impl Document {
    /// Its objects.
    pub(super) fn pieces(self) -> impl Iterator<Item = Piece> {
        self.0.into_iter().map(|(gateway, unknown)| Piece::Good(gateway, unknown))
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut ignored = Vec::new();
        let Top(form) = serde_ignored::deserialize(deserializer, |path| ignored.push(steps(&path)))?;
        if let Some(kind) = form.kind.as_deref().filter(|kind| is_list(kind)) {
            // Which Gateways are gone from it cannot be told, so nothing of its file is believed.
            let Some(items) = form.items else {
                let mut unknown = Unknown::default();
                ignored.iter().for_each(|field| unknown.add(field));
                let unknown = unknown.told().map(|told| format!("; {told}")).unwrap_or_default();
                return Err(D::Error::custom(format!("a {kind} without `items`{unknown}")));
            };
            let mut objects: Vec<_> =
                items.into_iter().map(|gateway| (gateway, Unknown::default())).collect();
            for field in &ignored {
                if let [Step::Field(_), Step::At(number), field @ ..] = field.as_slice()
                    && let Some((_, unknown)) = objects.get_mut(*number)
                {
                    unknown.add(field);
                }
            }
            return Ok(Self(objects));
        }
        let gateway = Gateway {
            api_version: form.api_version.unwrap_or_default(),
            kind: form.kind.unwrap_or_default(),
            metadata: form.metadata.unwrap_or_default(),
            spec: form.spec.unwrap_or_default(),
            status: form.status,
        };
        let mut unknown = Unknown::default();
        ignored.iter().for_each(|field| unknown.add(field));
        Ok(Self(vec![(gateway, unknown)]))
    }
}

/// An object of a manifest.
pub(super) enum Piece {
    /// One that is read, with the fields of it that are not known.
    Good(Gateway, Unknown),
    /// A Gateway in which a value is of another type.
    Bad {
        /// Its name, as it stands there.
        name: String,
        /// Where, and what is wrong there.
        what: String,
    },
}

impl Piece {
    pub(super) const fn is_bad(&self) -> bool {
        matches!(self, Self::Bad { .. })
    }
}

/// What tells whose an object is.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    api_version: String,
    kind: String,
    metadata: Option<Named>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

impl Identity {
    /// The object, where it is a Gateway and has a name.
    fn bad(self, what: String) -> Option<Piece> {
        let Self { api_version, kind, metadata } = self;
        let Named { name } = metadata.unwrap_or_default();
        (kind == KIND && api_version == API_VERSION && !name.is_empty()).then_some(Piece::Bad { name, what })
    }
}

/// The objects of a JSON text, each by itself. None where one of them is bad and no Gateway: what it is cannot be told.
pub(super) fn pieces_of_json(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter() {
        pieces.extend(pieces_of(document.ok()?)?);
    }
    Some(pieces)
}

/// The objects of a document, each by itself.
fn pieces_of(mut document: Value) -> Option<Vec<Piece>> {
    let is_list = |object: &Value| object["kind"].as_str().is_some_and(is_list);
    let objects = match is_list(&document) {
        true => serde_json::from_value(document["items"].take()).ok()?,
        false => vec![document],
    };
    if objects.iter().any(is_list) {
        return None;
    }
    let mut pieces = Vec::new();
    for object in &objects {
        match serde_path_to_error::deserialize::<_, Document>(object) {
            Ok(document) => pieces.extend(document.pieces()),
            Err(error) => pieces.push(Identity::deserialize(object).ok()?.bad(error.to_string())?),
        }
    }
    Some(pieces)
}

/// The objects of a YAML text, each by itself; as [`pieces_of_json`] else.
pub(super) fn pieces_of_yaml(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut lines = 0;
    for text in documents(text) {
        match parse_yaml::<Document>(text, lines) {
            Ok(read) => pieces.extend(read.into_iter().flat_map(Document::pieces)),
            Err(error) => match one::<Identity>(text)? {
                Identity { kind, .. } if is_list(&kind) => pieces.extend(pieces_of(one(text)?)?),
                identity => pieces.push(identity.bad(error)?),
            },
        }
        lines += text.matches('\n').count();
    }
    Some(pieces)
}

/// The only document of a YAML text: one that ends with `...` may have another after it.
fn one<T: DeserializeOwned>(text: &str) -> Option<T> {
    let [document] = parse_yaml(text, 0).ok()?.try_into().ok()?;
    Some(document)
}

/// The documents of a YAML text. A line that begins with the marker is in no scalar (YAML 1.2.2, 9.1.2).
fn documents(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.extend(text.get(begin..end));
            begin = end;
        }
        end += line.len();
    }
    documents.extend(text.get(begin..));
    documents
}

/// Reads the documents of a YAML text, before which its file has so many `lines`; what is wrong is one line.
///
/// # Errors
/// Where it is none, or an alias repeats too much.
pub(super) fn parse_yaml<T: DeserializeOwned>(text: &str, lines: usize) -> Result<Vec<T>, String> {
    let mut options = serde_saphyr::options! { budget: None };
    options.alias_limits.max_total_replayed_events = REPEATED;
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let told = first_line(&error.to_string());
        let Some(line) = error.location().map(|at| at.line()) else { return told };
        told.replacen(&format!("line {line} "), &format!("line {} ", line + lines as u64), 1)
    })
}

/// The first line of an error that draws pictures, without the word that says what it is.
fn first_line(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("malformed").trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Fields that are not known, of each place in the resource the first.
#[derive(Default)]
pub(super) struct Unknown(BTreeMap<String, (String, usize)>);

impl Unknown {
    fn add(&mut self, field: &[Step]) {
        if let [Step::Field(parent), Step::Field(name)] = field {
            match parent.as_str() {
                "metadata" if METADATA.contains(&name.as_str()) => return,
                "spec" if SPEC.contains(&name.as_str()) => return,
                _ => {}
            }
        }
        let (mut place, mut text) = (String::new(), String::new());
        for step in field {
            match step {
                Step::Field(name) => {
                    let dot = if text.is_empty() { "" } else { "." };
                    text.push_str(&format!("{dot}{name}"));
                    place.push_str(&format!("{dot}{name}"));
                }
                Step::At(number) => {
                    text.push_str(&format!("[{number}]"));
                    place.push_str("[]");
                }
            }
        }
        self.0.entry(place).or_insert((text, 0)).1 += 1;
    }

    /// What is to be told of them, if there are any.
    pub(super) fn told(&self) -> Option<String> {
        let name = |(first, count): &(String, usize)| match count {
            1 => first.clone(),
            count => format!("{first} and {} more like it", count - 1),
        };
        let mut names: Vec<String> = self.0.values().take(FIELDS_TOLD).map(name).collect();
        let more = self.0.len() - names.len();
        names.extend((more > 0).then(|| format!("{more} more")));
        let fields = if self.0.len() == 1 { "unknown field" } else { "unknown fields" };
        (!names.is_empty()).then(|| format!("{fields} {}: not read", names.join(", ")))
    }
}

/// A step from a document's top to a field.
enum Step {
    Field(String),
    At(usize),
}

fn steps(path: &Path<'_>) -> Vec<Step> {
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::At(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

/// What a document holds, whichever of both it is.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
    spec: Option<GatewaySpec>,
    status: Option<GatewayStatus>,
    items: Option<Vec<Gateway>>,
}

/// The top of a document, which is a map.
struct Top(Form);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TopVisitor)
    }
}

struct TopVisitor;

impl<'de> Visitor<'de> for TopVisitor {
    type Value = Top;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a Gateway, or a List of them")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Top, A::Error> {
        Form::deserialize(MapAccessDeserializer::new(map)).map(Top)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Top, A::Error> {
        Err(A::Error::custom(
            "a bare list is not read: write its Gateways as documents of their own, or as the `items` of a `kind: List`",
        ))
    }
}
