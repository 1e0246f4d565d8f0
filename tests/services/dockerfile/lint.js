// Prints what is wrong with the Dockerfile on standard input, as JSON.
"use strict";

const { validate } = require("dockerfile-utils");

const found = validate(require("fs").readFileSync(0, "utf8"));
const said = found.map((one) => `line ${one.range.start.line + 1}: ${one.message}`);
process.stdout.write(JSON.stringify(said));
