// An identity provider on loopback, as a JSON file has it: keys, people, programs, clients.
import { readFileSync } from "node:fs";
import process from "node:process";

import { Provider } from "oidc-provider";

const told = JSON.parse(readFileSync(process.argv[2], "utf8"));

// Where it is an EHR too (SMART App Launch), its FHIR server lies below /fhir.
const smart = told.smart ?? { launches: {}, studies: {} };
const fhir = `${told.issuer}/fhir`;
const launches = new Map(); // by the nonce of who asked

const provider = new Provider(told.issuer, {
  jwks: told.jwks,
  clients: told.clients,
  cookies: { keys: ["of tests alone"] },
  claims: {
    openid: ["sub"],
    profile: ["preferred_username", "groups", "site"],
    fhirUser: ["fhirUser", "name"],
  },
  scopes: ["openid", "launch", "user/ImagingStudy.rs"],
  extraParams: ["aud", "launch"],
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
provider.use(async (ctx, next) => {
  const [, name] = /^\/fhir\/ImagingStudy\/([\w-]+)$/.exec(ctx.path) ?? [];
  if (ctx.path === "/fhir/.well-known/smart-configuration") {
    ctx.body = {
      issuer: told.issuer,
      jwks_uri: `${told.issuer}/jwks`,
      authorization_endpoint: `${told.issuer}/auth`,
      token_endpoint: `${told.issuer}/token`,
      code_challenge_methods_supported: ["S256"],
      capabilities: ["launch-ehr", "sso-openid-connect", "client-confidential-symmetric"],
    };
  } else if (name) {
    const token = await provider.AccessToken.find(ctx.get("authorization").slice("Bearer ".length));
    const may = token?.scope.split(" ").includes("user/ImagingStudy.rs");
    ctx.status = may ? 200 : 401;
    ctx.body = {
      resourceType: may ? "ImagingStudy" : "OperationOutcome",
      identifier: [{ system: "urn:dicom:uid", value: `urn:oid:${smart.studies[name]}` }],
    };
  } else {
    const { launch, nonce, aud } = ctx.query;
    if (ctx.path === "/auth" && launch) {
      if (aud !== fhir) ctx.throw(400, "another server's tokens are asked for");
      launches.set(nonce, launch);
    }
    await next();
    const { nonce: of } = ctx.oidc?.entities?.AuthorizationCode ?? {};
    if (ctx.oidc?.route === "token" && ctx.status === 200 && launches.has(of)) {
      ctx.body = { ...ctx.body, ...smart.launches[launches.get(of)] };
    }
  }
});
provider.listen(told.port, "127.0.0.1");
