// Reads a JSON array of resources from standard input, and writes one of their findings.
const { Fhir } = require("fhir");

const fhir = new Fhir();
let text = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (piece) => { text += piece; });
process.stdin.on("end", () => {
  const found = JSON.parse(text).map((one) => fhir.validate(one, { errorOnUnexpected: true }));
  process.stdout.write(JSON.stringify(found.map((one) => one.messages)));
});
