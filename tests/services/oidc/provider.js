// An identity provider on loopback, as a JSON file has it: keys, people, programs, clients.
import { readFileSync } from "node:fs";
import process from "node:process";

import { Provider } from "oidc-provider";

const told = JSON.parse(readFileSync(process.argv[2], "utf8"));

const provider = new Provider(told.issuer, {
  jwks: told.jwks,
  clients: told.clients,
  cookies: { keys: ["of tests alone"] },
  claims: { openid: ["sub"], profile: ["preferred_username", "groups", "site"] },
  conformIdTokenClaims: false,
  clientDefaults: { id_token_signed_response_alg: told.algorithm },
  enabledJWA: { idTokenSigningAlgValues: [told.algorithm] },
  pkce: { required: () => true },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, ...told.people[id] }),
  }),
  extraTokenClaims: (_, token) => told.programs[token.clientId],
  ttl: { IdToken: 600, Interaction: 600, Session: 600, Grant: 600 },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        audience: resource,
        scope: "",
        accessTokenFormat: "jwt",
        accessTokenTTL: told.lifetimes[resource] ?? 600,
        jwt: { sign: { alg: told.algorithm } },
      }),
    },
  },
});
provider.listen(told.port, "127.0.0.1");
