use std::fs;

use corax_core::sample::demo;

use super::super::document::FIELDS_TOLD;
use super::*;

fn lab() -> (tempfile::TempDir, Manifests) {
    let directory = tempfile::tempdir().unwrap();
    let manifests = Manifests::new(directory.path().to_owned(), Files::new(), Known::Part);
    (directory, manifests)
}

fn whole<const N: usize>(names: [String; N]) -> Heard {
    Heard { whole: names.into(), ..Heard::default() }
}

/// Writes a file, and scans as if told that it is whole.
fn put(directory: &tempfile::TempDir, manifests: &mut Manifests, name: &str, text: &str) -> Scan {
    fs::write(directory.path().join(name), text).unwrap();
    manifests.scan(&whole([name.to_owned()]))
}

/// Scans when the directory has been quiet for long enough.
fn scan_in_the_end(manifests: &mut Manifests) -> Scan {
    manifests.scan(&Heard::default());
    assert!(manifests.unsettled());
    manifests.stirred = Instant::now().checked_sub(QUIET).unwrap();
    manifests.scan(&Heard::default())
}

fn gateway(name: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: Gateway\nmetadata:\n  name: {name}\n")
}

fn names(manifests: &Manifests) -> Vec<&str> {
    manifests.files().values().flatten().map(|gateway| gateway.metadata.name.as_str()).collect()
}

#[test]
fn yaml_json_lists_and_several_in_a_file_are_read() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": demo() });
    let scan = put(&directory, &mut manifests, "b.json", &list.to_string());
    assert_eq!(scan.problems, []);
    assert_eq!(names(&manifests), ["one", "two", "cloud", "site", "box"]);
}

#[test]
fn a_file_that_is_gone_is_let_go_of_beside_one_that_is_bad() {
    let (directory, mut manifests) = lab();
    for name in ["a", "b", "c"] {
        put(&directory, &mut manifests, &format!("{name}.yaml"), &gateway(name));
    }
    put(&directory, &mut manifests, "a.yaml", "kind: [");
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    manifests.scan(&Heard::default());
    assert!(manifests.unsettled());
    let stirred = manifests.stirred;
    manifests.scan(&Heard::default());
    assert_eq!(stirred, manifests.stirred, "a bad file that stays as it is stirs nothing");
    assert!(scan_in_the_end(&mut manifests).changed);
    assert_eq!(names(&manifests), ["a", "c"]);
}

#[test]
fn a_bad_file_keeps_its_own_last_gateways_and_says_why() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    put(&directory, &mut manifests, "b.yaml", &gateway("two"));
    for bad in ["", "kind: [", "- 1\n- 2\n", "kind: Service\napiVersion: v1\nmetadata: {name: x}\n"] {
        let scan = put(&directory, &mut manifests, "a.yaml", bad);
        assert!(!scan.changed, "{bad:?}");
        assert!(scan.problems[0].to_string().contains("a.yaml"), "{:?}", scan.problems);
        assert_eq!(names(&manifests), ["one", "two"]);
    }
    assert!(put(&directory, &mut manifests, "a.yaml", &gateway("three")).changed);
    assert_eq!(names(&manifests), ["three", "two"]);
}

#[test]
fn a_gateway_or_file_that_is_gone_is_gone_but_an_empty_directory_deletes_nothing() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    put(&directory, &mut manifests, "b.yaml", &gateway("three"));
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    assert_eq!(names(&manifests), ["one", "three"]);
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    assert!(scan_in_the_end(&mut manifests).changed);
    assert_eq!(names(&manifests), ["one"]);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    let scan = manifests.scan(&Heard::default());
    assert!(!scan.changed && scan.problems[0].what.contains("stays"), "{scan:?}");
    fs::remove_dir(directory.path()).unwrap();
    let scan = manifests.scan(&Heard::default());
    assert!(!scan.changed && scan.problems[0].what.contains("cannot be read"), "{scan:?}");
    assert_eq!(names(&manifests), ["one"]);
}

#[test]
fn a_directory_that_is_filled_anew_deletes_nothing_on_the_way() {
    let (directory, mut manifests) = lab();
    let all = ["a.yaml", "b.yaml", "c.yaml"];
    for name in all {
        put(&directory, &mut manifests, name, &gateway(name.trim_end_matches(".yaml")));
    }
    for name in all {
        fs::remove_file(directory.path().join(name)).unwrap();
        assert!(!manifests.scan(&Heard::default()).changed);
    }
    // Its last time of quiet is long ago by now.
    manifests.stirred = Instant::now().checked_sub(QUIET).unwrap();
    for name in all {
        let scan = put(&directory, &mut manifests, name, &gateway(name.trim_end_matches(".yaml")));
        assert!(!scan.changed);
        assert_eq!(names(&manifests), ["a", "b", "c"]);
    }
    assert!(!manifests.unsettled());
}

#[test]
fn a_file_that_is_being_written_keeps_its_gateways_whatever_else_changes() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    let path = directory.path().join("a.yaml");
    fs::write(&path, gateway("one")).unwrap();
    let long_ago = std::time::SystemTime::now().checked_sub(10 * SETTLED).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let writing = Heard { writing: ["a.yaml".to_owned()].into(), ..Heard::default() };
    assert!(!manifests.scan(&writing).changed && manifests.unsettled());
    assert_eq!(names(&manifests), ["one", "two"]);
    assert!(manifests.scan(&whole(["a.yaml".to_owned()])).changed);
    assert_eq!(names(&manifests), ["one"]);
}

#[test]
fn a_good_file_with_other_kinds_in_it_is_a_good_file() {
    let (directory, mut manifests) = lab();
    let both = format!("{}---\nkind: Service\napiVersion: v1\nmetadata: {{name: x}}\n", gateway("one"));
    put(&directory, &mut manifests, "a.yaml", &both);
    put(&directory, &mut manifests, "b.yaml", &gateway("two"));
    put(&directory, &mut manifests, "b.yaml", &gateway("Not_A_Name"));
    assert_eq!(names(&manifests), ["one", "two"], "whose Gateway that is cannot be told");
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    assert!(scan_in_the_end(&mut manifests).changed);
    assert_eq!(names(&manifests), ["one"]);
}

#[test]
fn only_files_are_read_and_a_directory_not_yet_understood_is_not_complete() {
    let (directory, mut manifests) = lab();
    assert_eq!(put(&directory, &mut manifests, "a.yaml", &gateway("one")).known, Known::All);
    nix::unistd::mkfifo(&directory.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let scan = manifests.scan(&whole(["pipe.yaml".to_owned()]));
    assert!(scan.known == Known::Part && scan.problems[0].what.contains("no regular file"), "{scan:?}");
    // Nor those of the kernel, of which some are read for ever.
    std::os::unix::fs::symlink("/proc/version", directory.path().join("kernel.yaml")).unwrap();
    let scan = manifests.scan(&whole(["kernel.yaml".to_owned()]));
    assert!(scan.problems[0].what.starts_with("is empty"), "{scan:?}");
}

#[test]
fn as_much_is_known_of_a_directory_that_is_emptied_as_was() {
    let (directory, mut manifests) = lab();
    assert_eq!(manifests.scan(&Heard::default()).known, Known::Part, "nothing was ever there");
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    for known in [Known::All, Known::Part] {
        if known == Known::Part {
            put(&directory, &mut manifests, "b.yaml", "{");
        }
        fs::rename(directory.path(), directory.path().with_extension("away")).unwrap();
        let scan = manifests.scan(&Heard::default());
        assert!(scan.known == known && scan.problems[0].what.contains("cannot be read"), "{scan:?}");
        fs::create_dir(directory.path()).unwrap();
        let scan = manifests.scan(&Heard::default());
        assert!(scan.known == known && scan.problems[0].what.contains("holds no"), "{scan:?}");
        fs::remove_dir(directory.path()).unwrap();
        fs::rename(directory.path().with_extension("away"), directory.path()).unwrap();
    }
}

#[test]
fn a_file_that_may_be_half_written_is_not_trusted() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    // Half of it parses, and would delete a Gateway.
    fs::write(directory.path().join("a.yaml"), gateway("one")).unwrap();
    assert!(!manifests.scan(&Heard::default()).changed);
    assert!(manifests.unsettled());
    assert_eq!(names(&manifests), ["one", "two"]);
    assert!(manifests.scan(&whole(["a.yaml".to_owned()])).changed);
    assert!(!manifests.unsettled());
}

#[test]
fn a_bad_file_says_what_is_wrong_and_one_that_vanished_is_no_bad_one() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "good.yaml", &gateway("good"));
    let scan = put(&directory, &mut manifests, "bad.yaml", "kind: [");
    let [problem] = scan.problems.as_slice() else { panic!("{:?}", scan.problems) };
    assert!(problem.what.starts_with("line ") && problem.remedy == "correct the file", "{problem}");
    std::os::unix::fs::symlink("nowhere", directory.path().join("bad.yaml.new")).unwrap();
    fs::rename(directory.path().join("bad.yaml.new"), directory.path().join("bad.yaml")).unwrap();
    let scan = manifests.scan(&whole(["bad.yaml".to_owned()]));
    assert!(scan.problems[0].remedy.contains("remove the link"), "{:?}", scan.problems);
    fs::remove_file(directory.path().join("bad.yaml")).unwrap();
    // As between listing the directory and reading the file.
    assert!(!manifests.read("bad.yaml", true, false));
    assert!(manifests.scan(&Heard::default()).problems.is_empty());
    assert_eq!(names(&manifests), ["good"]);
}

#[test]
fn a_field_that_no_gateway_has_is_told_with_file_gateway_and_place() {
    let (directory, mut manifests) = lab();
    let node = |name: &str, address: &str| {
        format!("  - {{ nodeName: {name}, {address}: 10.0.0.1, subnets: [10.1.0.0/24] }}\n")
    };
    let status = |address| format!("status:\n  nodes:\n{}{}", node("a", "privateIP"), node("b", address));
    // What `kubectl get -o yaml` writes.
    let kept = concat!(
        "  uid: 1-2\n  labels: { a: b }\n  annotations: { c: d }\n  ownerReferences: []\n",
        "  managedFields: [{ manager: x, fieldsV1: {} }]\n",
        "spec:\n  nodeSelector: { matchLabels: {} }\n  proxyConfig: { Replicas: 1 }\n",
        "  tunnelConfig: { Replicas: 1 }\n  exposeType: PublicIP\n",
        "  endpoints:\n  - { nodeName: a, type: tunnel, port: 4500 }\n",
    );
    let good = format!("{}{kept}{}", gateway("one"), status("privateIP"));
    assert_eq!(put(&directory, &mut manifests, "a.yaml", &good).problems, []);

    let bad = format!("{}{}", good.replace("  endpoints:", "  endpoits:"), node("c", "privteIP"));
    let text = format!("{}---\n{}{}", bad.replace("uid:", "uuid:"), gateway("two"), status("privteIP"));
    let told = |scan: Scan| {
        assert!(scan.changed);
        let told = scan.problems.into_iter().map(|Problem { object, what, .. }| {
            let (_, object) = object.split_once(&format!("file {}/", directory.path().display())).unwrap();
            format!("{object}: {what}")
        });
        told.collect::<Vec<_>>()
    };
    let scan = put(&directory, &mut manifests, "a.yaml", &text);
    let one = "unknown fields metadata.uuid, spec.endpoits, status.nodes[2].privteIP: not read";
    assert_eq!(
        told(scan),
        [
            format!("a.yaml, Gateway one: {one}"),
            "a.yaml, Gateway two: unknown field status.nodes[1].privteIP: not read".to_owned()
        ]
    );
    assert_eq!(names(&manifests), ["one", "two"], "it costs no Gateway");
    let mut items = serde_json::to_value(demo()).unwrap();
    items[1]["staus"] = items[1]["status"].take();
    let nodes = items[0]["status"]["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().for_each(|node| node["Subnets"] = serde_json::json!([]));
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items });
    let scan = put(&directory, &mut manifests, "a.json", &list.to_string());
    let told = told(scan);
    let cloud = "a.json, Gateway cloud: unknown field status.nodes[0].Subnets and 2 more like it: not read";
    assert_eq!(told[..2], [cloud, "a.json, Gateway site: unknown field staus: not read"], "{told:?}");
}

#[test]
fn a_bare_list_is_refused_with_what_to_write_instead() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "good.yaml", &gateway("good"));
    let json = serde_json::to_string(&demo()).unwrap();
    for (name, text) in [("bare.json", json.as_str()), ("bare.yaml", json.as_str()), ("empty.json", "[]")] {
        let scan = put(&directory, &mut manifests, name, text);
        let told = scan.problems.iter().find(|problem| problem.object.contains(name)).unwrap();
        assert!(told.what.contains("as the `items` of a `kind: List`"), "{told}");
        assert!(!told.what.contains('\n'), "{told}");
    }
    assert_eq!(names(&manifests), ["good"]);
}

#[test]
fn a_file_without_a_gateway_keeps_its_last_ones_and_says_what_is_there_instead() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "good.yaml", &gateway("good"));
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    let list = |field: &str| format!("apiVersion: v1\nkind: List\n{field}\n");
    let stays = "; its last good Gateways stay";
    let only = only_gateways("remove the file");
    for (text, what, remedy) in [
        (list("itmes: []"), "a List without `items`; unknown field itmes: not read", "correct the file"),
        (
            format!("{}---\n{}", gateway("one"), list("").replace("List", "GatewayList")),
            "a GatewayList without `items`",
            "correct the file",
        ),
        (list("items: []"), "holds an empty List", "write Gateways into it, or remove the file"),
        ("# nothing yet\n".to_owned(), "holds no document", "write Gateways, or remove the file"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: { name: x }\n".to_owned(),
            "holds no Gateway: Service x of \"v1\" is left out",
            &only,
        ),
        (
            "metadata: {}\n".to_owned(),
            "holds no Gateway: an object without kind and apiVersion is left out",
            &only,
        ),
    ] {
        let scan = put(&directory, &mut manifests, "a.yaml", &text);
        let [problem] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
        // Where it stands comes before, or behind.
        let said = problem.what.strip_suffix(stays).is_some_and(|said| said.contains(what));
        assert!(said && problem.remedy == remedy, "{problem}");
        assert!(!problem.what.contains("  ") && !problem.what.contains('\n'), "{problem}");
        assert_eq!(names(&manifests), ["one", "good"]);
    }
    let beside = format!("{}---\n{}", gateway("one"), list("items: []"));
    assert_eq!(put(&directory, &mut manifests, "a.yaml", &beside).problems, []);
}

#[test]
fn of_many_unknown_fields_some_are_told_by_name_and_the_rest_counted() {
    let (directory, mut manifests) = lab();
    let many = |count| -> String { (0..count).map(|number| format!("x{number}: 1\n")).collect() };
    let told = |scan: Scan| scan.problems.into_iter().map(|problem| problem.what).collect::<Vec<_>>();
    let eight = "unknown fields x0, x1, x2, x3, x4, x5, x6, x7";
    let scan = put(&directory, &mut manifests, "a.yaml", &(gateway("one") + &many(FIELDS_TOLD)));
    assert_eq!(told(scan), [format!("{eight}: not read")]);
    let scan = put(&directory, &mut manifests, "a.yaml", &(gateway("one") + &many(FIELDS_TOLD + 2)));
    assert_eq!(told(scan), [format!("{eight}, 2 more: not read")]);
}

#[test]
fn a_list_as_the_api_server_gives_it_is_read() {
    let (directory, mut manifests) = lab();
    let list = serde_json::json!({
        "apiVersion": API_VERSION, "kind": "GatewayList", "metadata": { "continue": "" }, "items": demo(),
    });
    assert_eq!(put(&directory, &mut manifests, "a.json", &list.to_string()).problems, []);
    assert_eq!(names(&manifests), ["cloud", "site", "box"]);
}

#[test]
fn a_gateway_with_a_value_of_another_type_costs_itself_beside_others() {
    let (directory, mut manifests) = lab();
    let with = |name: &str, status: &str| format!("{}status: {status}\n", gateway(name));
    let file = |documents: &[String]| documents.join("---\n");
    let expose = |manifests: &Manifests, name: &str| {
        let mut all = manifests.files().values().flatten();
        let gateway = all.find(|gateway| gateway.metadata.name == name)?;
        Some(gateway.status.as_ref().map_or(0, |status| status.nodes.len()))
    };
    put(&directory, &mut manifests, "a.yaml", &file(&[with("one", "{}"), with("two", "{ nodes: [{}] }")]));
    // What YAML takes for a text it takes for one here too.
    let one = with("one", "{ nodes: [{}, {}] }").replace("  name:", "  annotations: { rev: 5 }\n  name:");
    let two = with("two", "{ nodes: [{}, { nodeName: n2, subnets: 10.1.0.0/24 }] }");
    let scan = put(&directory, &mut manifests, "a.yaml", &file(&[one, two.clone()]));
    assert!(scan.changed && scan.known == Known::All, "{scan:?}");
    assert_eq!((expose(&manifests, "one"), expose(&manifests, "two")), (Some(2), Some(1)));
    let [problem] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
    assert!(problem.object.ends_with("a.yaml, Gateway two"), "{problem}");
    let what = "line 12 column 48: expected sequence start; its last good form stays";
    assert_eq!((&*problem.what, &*problem.remedy), (what, "correct the file"));

    // What was never good is left out, and is not known.
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [
        demo()[0], { "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": "new" }, "spec": 5 },
    ] });
    let scan = put(&directory, &mut manifests, "b.json", &list.to_string());
    assert!(scan.changed && scan.known == Known::Part, "{scan:?}");
    let what = "spec: invalid type: integer `5`, expected struct GatewaySpec; it is left out";
    assert!(scan.problems.iter().any(|problem| problem.what == what), "{:?}", scan.problems);
    assert_eq!(names(&manifests), ["one", "two", "cloud"]);
    // Nor is it after a restart with a file that says less.
    let mut again = Manifests::new(directory.path().to_owned(), manifests.files().clone(), Known::Part);
    let scan = put(&directory, &mut again, "b.json", "{");
    assert!(scan.known == Known::Part, "{scan:?}");
    let scan = put(&directory, &mut again, "b.json", &list["items"][0].to_string());
    again.scan(&whole(["a.yaml".to_owned()]));
    assert_eq!(names(&again), ["one", "two", "cloud"], "{scan:?}");
    put(&directory, &mut again, "a.yaml", &gateway("one"));
    assert_eq!(again.scan(&Heard::default()).known, Known::All);

    // Whose it is cannot be told, and one alone is told with its line.
    let nameless = two.replace("name: two", "name: [two]");
    for bad in [file(&[gateway("three"), nameless]), two] {
        let scan = put(&directory, &mut manifests, "a.yaml", &bad);
        assert!(!scan.changed && scan.problems[0].what.contains("line "), "{:?}", scan.problems);
        assert_eq!(names(&manifests), ["one", "two", "cloud"]);
    }
}

#[test]
fn a_gateway_with_a_value_of_another_type_costs_itself_in_a_list_as_kubectl_gives_it() {
    let (directory, mut manifests) = lab();
    let item = |text: &str| format!("- {}\n", text.trim_end().replace('\n', "\n  "));
    let list = |items: &[&str]| {
        let items: String = items.iter().map(|text| item(text)).collect();
        format!("apiVersion: v1\nkind: List\nmetadata: {{ resourceVersion: \"\" }}\nitems:\n{items}")
    };
    let (one, two) = (gateway("one"), gateway("two"));
    let bad = format!("{two}status: {{ nodes: [{{ nodeName: n2, subnets: 10.1.0.0/24 }}] }}");
    let scan = put(&directory, &mut manifests, "a.yaml", &list(&[&one, &bad]));
    let [problem] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
    assert!(problem.object.ends_with("a.yaml, Gateway two"), "{problem}");
    let what =
        "status.nodes[0].subnets: invalid type: string \"10.1.0.0/24\", expected a sequence; it is left out";
    assert_eq!(problem.what, what);
    assert_eq!(names(&manifests), ["one"]);

    put(&directory, &mut manifests, "a.yaml", &list(&[&one, &two]));
    let nested = list(&[&gateway("three")]);
    for text in [
        // Whose place is empty, or whose name it is, cannot be told.
        list(&[&one, ""]),
        list(&[&gateway("no"), &bad]),
        list(&[&one, &nested, &bad]),
        // Of three documents.
        format!("{two}...\n{bad}---\n{one}"),
        list(&[&one]).replace("metadata: {", "metadata: 5 #"),
        list(&[&one, &bad]) + "items: []\n",
    ] {
        let scan = put(&directory, &mut manifests, "a.yaml", &text);
        assert!(!scan.changed && !scan.problems.is_empty(), "{text}: {:?}", scan.problems);
        assert_eq!(names(&manifests), ["one", "two"], "{text}");
    }
}

#[test]
fn a_value_of_any_depth_costs_no_more_than_its_file() {
    let (directory, mut manifests) = lab();
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let list = "kind: List\nitems: [5]\n";
    for (name, text) in [
        ("a.yaml", format!("{}x: {deep}\n", gateway("one"))),
        ("b.yaml", format!("{}status: 5\nx: {deep}\n", gateway("one"))),
        ("c.yaml", format!("{}---\n{list}x: {deep}\n", gateway("one"))),
        ("d.json", format!("{{\"x\":{deep}}}")),
    ] {
        let scan = put(&directory, &mut manifests, name, &text);
        let of_it = |problem: &Problem| problem.object.ends_with(name);
        assert!(scan.problems.iter().any(of_it), "{name}: {:?}", scan.problems);
    }
}

#[test]
fn of_many_problems_some_are_told_and_aliases_repeat_only_so_much() {
    let (directory, mut manifests) = lab();
    let others: String = (0..PROBLEMS_TOLD + 9).map(|number| format!("---\nkind: K{number}\n")).collect();
    let scan = put(&directory, &mut manifests, "a.yaml", &(gateway("one") + &others));
    assert_eq!(scan.problems.len(), PROBLEMS_TOLD + 1);
    assert_eq!(scan.problems[PROBLEMS_TOLD].what, "has 9 more problems");
    // Half a kilobyte, a million names.
    let list = |number: u32| {
        let last = number - 1;
        format!("  x{number}: &x{number} [{}]\n", vec![format!("*x{last}"); 10].join(", "))
    };
    let bomb: String = (1..=6).map(list).collect();
    // Where another value is wrong too, its Gateways are not read one by one.
    for (status, what) in [("", "alias"), ("status: 5\n", "expected mapping start")] {
        let text = format!("{}---\n{}{status}spec:\n  x0: &x0 name\n{bomb}", gateway("one"), gateway("two"));
        let scan = put(&directory, &mut manifests, "a.yaml", &text);
        assert!(!scan.changed && scan.problems[0].what.contains(what), "{:?}", scan.problems);
    }
    let alias = format!("{}spec: &spec {{}}\nstatus: *spec\n", gateway("two"));
    put(&directory, &mut manifests, "b.yaml", &alias);
    assert_eq!(names(&manifests), ["one", "two"]);
}
