//! Owns the results: the tables, and the picture of the memory.
//! Never measures.

use std::fmt::Write as _;

use crate::{
    finished::Finished,
    followed::Followed,
    hostile_answers::HostileAnswers,
    publish,
    reads::{Measured, Reads},
    waiting::{Idle, Tenants, Waiting},
};

/// The bound of the memory without stops in MiB, and for each waiting stop in KiB.
const BOUND_MIB: f64 = 12.0;
const BOUND_KIB_PER_STOP: f64 = 1.0;

/// The largest ratio of the peak while listing to the memory a minute later.
const PEAK_RATIO: f64 = 1.2;

/// The status writes of stops that were not sent that are allowed in the first minute.
const MOST_WRITES: u64 = 1000;

/// The longest time to the first stop request in seconds, and its largest ratio to the list of a bare client.
const FIRST_STOP: f64 = 5.0;
const FIRST_STOP_RATIO: f64 = 1.2;

/// The largest peak of the memory while a hundred answers arrive at once, in MiB.
const MOST_FOR_ANSWERS: f64 = 64.0;

/// The most CPU time of a read, in ms: a thousand runs at one read a minute each take 0.5 % of a core.
const MOST_FOR_A_READ: f64 = 0.3;

/// The same with very many runs: one core can read 100 tenants at their full rate.
const MOST_FOR_A_DUE_READ: f64 = 1.0;

/// All results.
#[derive(Default)]
pub struct Report {
    idle: Option<Idle>,
    waiting: Vec<(Tenants, Waiting)>,
    finished: Option<Finished>,
    followed: Option<Followed>,
    reads: Option<Reads>,
    answers: Vec<HostileAnswers>,
}

/// Returns the bound of the memory with this number of waiting stops, in MiB.
fn bound(stops: usize) -> f64 {
    BOUND_MIB + stops as f64 * BOUND_KIB_PER_STOP / 1024.0
}

fn mark(kept: bool) -> &'static str {
    if kept { "" } else { " ✗" }
}

impl Report {
    pub fn idle(&mut self, idle: Idle) {
        self.idle = Some(idle);
    }

    pub fn waiting(&mut self, tenants: Tenants, waiting: Waiting) {
        self.waiting.push((tenants, waiting));
    }

    pub fn finished(&mut self, finished: Finished) {
        self.finished = Some(finished);
    }

    pub fn followed(&mut self, followed: Followed) {
        self.followed = Some(followed);
    }

    pub fn reads(&mut self, reads: Reads) {
        self.reads = Some(reads);
    }

    pub fn answers(&mut self, answers: Vec<HostileAnswers>) {
        self.answers = answers;
    }

    /// Publishes the tables, and the picture of the memory.
    pub fn publish(&self) {
        publish::publish("scale.md", &self.text());
        if !self.waiting.is_empty() {
            publish::write("growth.svg", &self.picture());
        }
    }

    /// Returns the sections in Markdown.
    fn text(&self) -> String {
        let mut text = String::new();
        if !self.waiting.is_empty() {
            self.write_waiting(&mut text);
        }
        if let Some(Finished { stops, first_stop, bare_listed, ratio, memory: [rss, peak] }) = &self.finished {
            text += "\n| finished stops | first stop | bare list | ratio | memory, MiB | peak |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n";
            let (first, bare) = (first_stop.as_secs_f64(), bare_listed.as_secs_f64());
            let missed = mark(*ratio <= FIRST_STOP_RATIO);
            let row = format!("| {stops} | {first:.3} s | {bare:.3} s | {ratio:.2}{missed} | {rss:.1} | {peak:.1} |\n");
            text += &row;
        }
        if let Some(Followed { runs: [runs, tasks], at_work: [rss, peak], restarted: [rss_after, peak_after] }) =
            &self.followed
        {
            text += "\n| followed runs | tasks of each | memory, MiB | peak | memory, restarted | peak, restarted |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n";
            text += &format!("| {runs} | {tasks} | {rss:.1} | {peak:.1} | {rss_after:.1} | {peak_after:.1} |\n");
        }
        if let Some(reads) = &self.reads {
            write_reads(&mut text, reads);
        }
        if !self.answers.is_empty() {
            text += "\n| 100 answers at once | peak, MiB |\n| --- | ---: |\n";
        }
        for HostileAnswers { kind, peak } in &self.answers {
            text += &format!("| {kind} | {peak:.1}{} |\n", mark(*peak <= MOST_FOR_ANSWERS));
        }
        text
    }

    fn write_waiting(&self, text: &mut String) {
        let idle = self.idle.as_ref().map_or(0.0, |idle| idle.rss);
        *text += &format!(
            "## Waiting stops

The operator starts while very many stops wait for the rate limit, whose budgets a 429 has closed. Memory is resident memory,
one minute after the list; without stops it is {idle:.1} MiB. The bound is 12 MiB and 1 KiB for each stop. A bare client lists
the same stops. ✗ misses a target.

![memory over the number of waiting stops](images/growth.svg)

"
        );
        *text += "| waiting stops | tenants | memory, MiB | bound | KiB a stop | peak, listing | ratio | peak, all | list | bare list | first stop | CPU: list, minute, quiet minute |\n";
        *text += "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
        for (tenants, waiting) in &self.waiting {
            self.write_usage(text, *tenants, waiting);
        }
        *text += "\n| waiting stops | tenants | in the queue | sent | status writes | of these not for sent stops | events | events in all (namespaces) | quiet minute: status writes |\n";
        *text += "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
        for (tenants, waiting) in &self.waiting {
            write_requests(text, *tenants, waiting);
        }
    }

    fn write_usage(&self, text: &mut String, tenants: Tenants, waiting: &Waiting) {
        let Waiting {
            stops,
            listed,
            bare_listed,
            first_stop,
            rss,
            peaks: [listing, _, all],
            cpu: [list, minute],
            quiet,
            ..
        } = waiting;
        let (bound, ratio, first_stop) = (bound(*stops), listing / rss, first_stop.as_secs_f64());
        let each = self.idle.as_ref().map_or(0.0, |idle| (rss - idle.rss) * 1024.0 / *stops as f64);
        let cgroup = waiting.cgroup_peak.map_or_else(String::new, |peak| format!(" (cgroup {peak:.1})"));
        let quiet = quiet.as_ref().map_or("–".to_owned(), |(cpu, _)| format!("{cpu:.1} s"));
        *text += &format!(
            "| {stops} | {} | {rss:.1}{} | {bound:.1} | {each:.2} | {listing:.1} | {ratio:.2}{} | {all:.1}{cgroup} | {:.2} s | {:.2} s | {first_stop:.2} s{} | {list:.1} s, {minute:.1} s, {quiet} |\n",
            tenants.numbers(*stops).0,
            mark(*rss <= bound),
            mark(ratio <= PEAK_RATIO),
            listed.as_secs_f64(),
            bare_listed.as_secs_f64(),
            mark(first_stop <= FIRST_STOP),
        );
    }

    /// Draws the memory over the number of waiting stops, with the bound as a line.
    fn picture(&self) -> String {
        let most_stops = self.waiting.iter().map(|(_, waiting)| waiting.stops).max().unwrap_or(1);
        let idle = self.idle.as_ref().map_or(0.0, |idle| idle.rss);
        let most = self.waiting.iter().map(|(_, waiting)| waiting.peaks[2]).fold(bound(most_stops), f64::max);
        let chart = Chart { most_stops: most_stops as f64, most_mebibytes: most * 1.05 };
        let mut svg = chart.axes();
        let ends = [0, most_stops].map(|stops| chart.at(stops as f64, bound(stops)));
        line(&mut svg, &ends, "#888", "stroke-dasharray=\"6 4\"");
        for (tenants, color) in [(Tenants::One, "#0969da"), (Tenants::Many, "#bf3989")] {
            let of = |(which, waiting): &(Tenants, Waiting)| {
                (*which == tenants).then_some((waiting.stops as f64, waiting.rss))
            };
            let measured: Vec<_> = self.waiting.iter().filter_map(of).collect();
            let points: Vec<_> = [(0.0, idle)].into_iter().chain(measured).map(|(x, y)| chart.at(x, y)).collect();
            if points.len() > 1 {
                line(&mut svg, &points, color, "");
            }
        }
        for (row, (color, text)) in [
            ("#888", "bound: 12 MiB and 1 KiB a stop"),
            ("#0969da", "one tenant in one namespace"),
            ("#bf3989", "1,000 tenants in 50 namespaces"),
        ]
        .into_iter()
        .enumerate()
        {
            let y = TOP + 16.0 + 18.0 * row as f64;
            write!(svg, "<text x=\"{}\" y=\"{y}\" fill=\"{color}\">{text}</text>", LEFT + 12.0).expect(TO_STRING);
        }
        svg + "</svg>\n"
    }
}

/// The size of the picture, and the left and upper end of its axes, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 16.0;
const RIGHT: f64 = WIDTH - 24.0;
const BOTTOM: f64 = HEIGHT - 48.0;

const TO_STRING: &str = "writing to a string does not fail";

/// The scales of the picture.
struct Chart {
    most_stops: f64,
    most_mebibytes: f64,
}

impl Chart {
    fn at(&self, stops: f64, mebibytes: f64) -> (f64, f64) {
        let x = LEFT + (RIGHT - LEFT) * stops / self.most_stops;
        (x, BOTTOM - (BOTTOM - TOP) * mebibytes / self.most_mebibytes)
    }

    fn axes(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#333\"/>\n"
        );
        for part in 0..=4 {
            let (stops, mebibytes) =
                (self.most_stops * f64::from(part) / 4.0, self.most_mebibytes * f64::from(part) / 4.0);
            let (x, y) = self.at(stops, mebibytes);
            writeln!(svg, "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{stops:.0}</text>", BOTTOM + 18.0)
                .expect(TO_STRING);
            writeln!(svg, "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\">{mebibytes:.0}</text>", LEFT - 6.0)
                .expect(TO_STRING);
        }
        let middle = (LEFT + RIGHT) / 2.0;
        writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">waiting stops; resident memory in MiB, one minute after the list</text>",
            HEIGHT - 10.0
        )
        .expect(TO_STRING);
        svg
    }
}

fn line(svg: &mut String, points: &[(f64, f64)], color: &str, style: &str) {
    let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" {style}/>",
        path.join(" ")
    )
    .expect(TO_STRING);
}

/// Writes the requests to the API server. A stop that was sent has two status writes: its claim and its outcome.
fn write_requests(
    text: &mut String,
    tenants: Tenants,
    Waiting { stops, sent, queued, requests: [minute, all], quiet, namespaces, .. }: &Waiting,
) {
    const WRITES: &str = "workflowrunstops/status PATCH";
    let writes = minute.of(WRITES);
    let others = writes.saturating_sub(2 * sent);
    let quiet = quiet.as_ref().map_or("–".to_owned(), |(_, requests)| requests.of(WRITES).to_string());
    *text += &format!(
        "| {stops} | {} | {queued} | {sent} | {writes} | {others}{} | {} | {}{} ({namespaces}) | {quiet} |\n",
        tenants.numbers(*stops).0,
        mark(others <= MOST_WRITES),
        minute.events(),
        all.events(),
        mark(all.events() <= *namespaces as u64),
    );
}

fn write_reads(text: &mut String, Reads { followed, due, time_wait }: &Reads) {
    *text += "
## Reads of followed runs

Over TLS, one host, 100 tenants, no status changes. First the reads of runs that are followed for a while, then those of very
many runs that are all due. A run that does not end is read once a minute in the end.

| followed runs | reads | reads a second | CPU time of each, ms | connections |
| ---: | ---: | ---: | ---: | ---: |
";
    for (phase, most) in [(followed, MOST_FOR_A_READ), (due, MOST_FOR_A_DUE_READ)] {
        let Measured { runs, reads, connections, rate, cpu } = phase;
        *text += &format!("| {runs} | {reads} | {rate:.0} | {cpu:.3}{} | {connections} |\n", mark(*cpu <= most));
    }
    let part = followed.cpu * 1000.0 / 60_000.0 * 100.0;
    *text += &format!(
        "\nSo a thousand runs at one read a minute each take {part:.2} % of a core. After the reads of due runs, {time_wait} sockets are in TIME_WAIT.\n"
    );
}
