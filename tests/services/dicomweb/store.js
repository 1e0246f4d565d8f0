// Stores files by the client that OHIF uses: node store.js ADDRESS KEY STUDY FILE…, "-" for none.
import { readFileSync } from "node:fs";
import xhr2 from "xhr2";

globalThis.XMLHttpRequest = xhr2;
const { api } = await import("dicomweb-client");
const [address, key, study, ...files] = process.argv.slice(2);
const client = new api.DICOMwebClient({
  url: address,
  headers: { Authorization: `Bearer ${key}` },
});
const datasets = files.map((file) => {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return buffer.slice(byteOffset, byteOffset + byteLength);
});
try {
  const answer = await client.storeInstances({
    datasets,
    ...(study === "-" ? {} : { studyInstanceUID: study }),
  });
  console.log(JSON.stringify({ status: 200, answer: answer ?? null }));
} catch (error) {
  console.log(JSON.stringify({ status: error.status ?? 0, message: String(error.message) }));
}
