use clap::Args;
use obelisk::gpu::{AdapterSummary, Device, DeviceOptions, adapters};
use obelisk::model::{self, NETWORKS, Network, PlannedMemory, Summary};

use super::Usage;
use super::train::three;

/// `obelisk info`
#[derive(Debug, Args)]
pub struct Info {
    /// Describe this network: its layers, parameters, arithmetic and memory; needs no adapter
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// The image's voxels [default: as published, or 144,144,144]
    #[arg(long, value_name = "D,H,W", value_parser = three::<usize>, requires = "arch")]
    size: Option<[usize; 3]>,
    /// Labels, the background included [default: as published, or 9]
    #[arg(long, value_name = "L", requires = "arch")]
    labels: Option<usize>,
    /// Also print every dispatch of one inference: its workgroups, arithmetic, bytes, what the plan did with it, and the
    /// moment at which most memory is in use, and by what
    #[arg(long, requires = "arch", conflicts_with = "json")]
    plan: bool,
    /// With --plan, print the dispatches of a training step (batch 1) instead
    #[arg(long, requires = "plan")]
    training: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(&self, options: &DeviceOptions) -> anyhow::Result<()> {
        if let Some(arch) = &self.arch {
            let network = model::find(arch).map_err(|e| Usage(e.to_string()))?;
            return self.describe(network);
        }
        let found = pollster::block_on(adapters(options.backend.as_deref()))?;
        let device = pollster::block_on(Device::open(options))?;
        let chosen = device.adapter();
        let why = match &options.adapter {
            Some(wanted) => format!("`--adapter {wanted}` names it"),
            None if found.len() == 1 => "the only one".to_owned(),
            None => format!("the first of the fastest kind, {}", chosen.kind),
        };
        if self.json {
            let networks: Vec<_> = NETWORKS.iter().map(|n| (n.name, n.about)).collect();
            let report = serde_json::json!({
                "adapters": found, "chosen": chosen, "why": why,
                "forms": device.caps().forms, "forms_source": device.forms_source().to_string(),
                "networks": networks.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            });
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        println!("Adapters");
        for (i, adapter) in found.iter().enumerate() {
            print_adapter(i, adapter);
        }
        println!("\nChosen: {} ({}): {why}", chosen.name, chosen.backend);
        println!(
            "Forms of the kernels: {} ({})",
            device.caps().forms,
            device.forms_source()
        );
        println!("\nNetworks (--arch)");
        for network in NETWORKS {
            println!("  {:20} {}", network.name, network.about);
        }
        Ok(())
    }
}

impl Info {
    fn describe(&self, network: &Network) -> anyhow::Result<()> {
        let (size, labels) = network.usual();
        let (size, labels) = (self.size.unwrap_or(size), self.labels.unwrap_or(labels));
        if size.contains(&0) || labels < 2 {
            return Err(Usage("--size takes positive numbers, --labels at least 2".into()).into());
        }
        let summary = Summary::new(network, size, labels)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&summary)?);
            return Ok(());
        }
        print_summary(network, &summary);
        if self.plan {
            println!("\n{}", Summary::plan(network, size, labels, self.training)?);
        }
        Ok(())
    }
}

fn print_summary(network: &Network, summary: &Summary) {
    let by = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
    println!("{}: {}", network.name, network.about);
    println!("image 1×{}, {} labels\n", by(&summary.size), summary.labels);
    println!(
        "{:24} {:16} {:>18} {:>12} {:>12}",
        "layer", "kind", "output", "parameters", "MFLOP"
    );
    for layer in &summary.layers {
        println!(
            "{:24} {:16} {:>18} {:>12} {:>12.1}",
            layer.name,
            layer.kind,
            by(&layer.shape[1..]),
            layer.parameters,
            layer.flops as f64 / 1e6
        );
    }
    println!(
        "{:24} {:16} {:>18} {:>12} {:>12.1}\n",
        "total",
        "",
        "",
        summary.parameters,
        summary.flops as f64 / 1e6
    );
    print_memory("inference", &summary.inference);
    print_memory("training step, batch 1", &summary.training);
}

fn print_memory(what: &str, planned: &Result<PlannedMemory, String>) {
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    match planned {
        Ok(memory) => println!(
            "device memory, {what}: {:.1} MiB, of which activations and temporaries {:.1} MiB",
            mib(memory.total),
            mib(memory.slots)
        ),
        Err(reason) => println!("device memory, {what}: not within WebGPU's default limits: {reason}"),
    }
}

fn print_adapter(number: usize, a: &AdapterSummary) {
    println!("  {number}: {} ({}, {}; {})", a.name, a.kind, a.backend, a.driver);
    println!(
        "     bindings up to {} MiB, buffers up to {} MiB, {} storage buffers a stage",
        a.max_binding_mib, a.max_buffer_mib, a.storage_buffers
    );
    let subgroups = match a.subgroups {
        Some((least, most)) if least == most => format!("subgroups of {least}"),
        Some((least, most)) => format!("subgroups of {least} to {most}"),
        None => "no subgroups".into(),
    };
    let has = |yes, what| format!("{}{what}", if yes { "" } else { "no " });
    println!(
        "     workgroups of {} invocations with {} KiB, {subgroups}, {}, {}",
        a.invocations,
        a.workgroup_kib,
        has(a.f16, "16-bit floats"),
        has(a.timestamps, "timestamps")
    );
}
