# A config's stem as target: `snakemake --profile local upernet_cae_base_12_512_..._pt_2e-4` runs the
# rows of the sheet that use it.
for stem in sorted({found.stem for found in SHEET.experiments}):

    rule:
        name:
            stem
        input:
            expand(
                "<results>/{experiment}/metrics.json",
                experiment=[found.name for found in SHEET.experiments if found.stem == stem],
            ),
