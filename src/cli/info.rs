use clap::Args;
use obelisk::gpu::{AdapterSummary, Device, DeviceOptions, adapters};
use obelisk::model::NETWORKS;

/// `obelisk info`
#[derive(Debug, Args)]
pub struct Info {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(&self, options: &DeviceOptions) -> anyhow::Result<()> {
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
        println!("\nNetworks (--arch)");
        for network in NETWORKS {
            println!("  {:20} {}", network.name, network.about);
        }
        Ok(())
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
