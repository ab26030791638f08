// An OpenID provider with Keycloak's paths and the shape of its tokens. One line of JSON says that it is ready.
// PORT, REALM and ACCESS_TTL (seconds) come from the environment. Keys are new with each start.
import http from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import Provider, { errors } from 'oidc-provider';
import { createLocalJWKSet, jwtVerify } from 'jose';

const port = Number(process.env.PORT);
const ttl = Number(process.env.ACCESS_TTL ?? 300);
const realm = `/realms/${process.env.REALM ?? 'test'}`;
const protocol = '/protocol/openid-connect';
const issuer = `http://127.0.0.1:${port}${realm}`;
const monthSeconds = 30 * 24 * 3600;

const people = {
  alice: { password: 'alicepw', email: 'alice@example.org', roles: ['data-access'] },
  bob: { password: 'bob:pw', email: 'bob@example.org', roles: [] },
};

const pair = generateKeyPairSync('rsa', { modulusLength: 2048 });
const names = { kid: randomUUID(), use: 'sig', alg: 'RS256' };
const published = createLocalJWKSet({ keys: [{ ...pair.publicKey.export({ format: 'jwk' }), ...names }] });

const service = {
  scope: 'openid offline_access profile email',
  audience: 'api-public',
  accessTokenFormat: 'jwt',
  accessTokenTTL: ttl,
  jwt: { sign: { alg: 'RS256' } },
};

const noBrowser = { response_types: [], redirect_uris: [] };

const provider = new Provider(issuer, {
  jwks: { keys: [{ ...pair.privateKey.export({ format: 'jwk' }), ...names }] },
  cookies: { keys: [randomUUID()] },
  scopes: service.scope.split(' '),
  claims: { openid: ['sub'], email: ['email'], profile: ['preferred_username'] },
  routes: {
    token: `${protocol}/token`,
    introspection: `${protocol}/token/introspect`,
    jwks: `${protocol}/certs`,
    userinfo: `${protocol}/userinfo`,
  },
  clients: [
    {
      client_id: 'api-public',
      token_endpoint_auth_method: 'none',
      grant_types: ['password', 'refresh_token'],
      ...noBrowser,
    },
    {
      client_id: 'api-private',
      client_secret: 'private-secret',
      token_endpoint_auth_method: 'client_secret_post',
      grant_types: ['password'],
      ...noBrowser,
    },
    {
      client_id: 'api-introspect',
      client_secret: 'introspect-secret',
      grant_types: ['client_credentials'],
      ...noBrowser,
    },
  ],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: async (_ctx, client) => client.clientAuthMethod !== 'none' },
    resourceIndicators: {
      enabled: true,
      defaultResource: async () => 'urn:api',
      useGrantedResource: async () => true,
      getResourceServerInfo: async () => service,
    },
  },
  ttl: { AccessToken: ttl, ClientCredentials: ttl, IdToken: ttl, Grant: monthSeconds, RefreshToken: monthSeconds },
  rotateRefreshToken: false,
  issueRefreshToken: async () => true,
  findAccount: async (_ctx, id) =>
    people[id] && {
      accountId: id,
      claims: async () => ({ sub: id, email: people[id].email, preferred_username: id }),
    },
  extraTokenClaims: async (_ctx, token) => {
    if (!token.accountId) return undefined;
    const { email, roles } = people[token.accountId];
    return {
      email,
      preferred_username: token.accountId,
      realm_access: { roles: roles.map((role) => `realm-${role}`) },
      resource_access: { 'api-public': { roles }, other: { roles: ['of-another-client'] } },
    };
  },
});

provider.registerGrantType(
  'password',
  async (ctx) => {
    const { username, password, scope = 'openid' } = ctx.oidc.params;
    const known = people[username?.toLowerCase()];
    if (!known || known.password !== password) throw new errors.InvalidGrant('invalid user credentials');
    const accountId = username.toLowerCase();
    const grant = new provider.Grant({ clientId: ctx.oidc.client.clientId, accountId });
    grant.addOIDCScope(scope);
    grant.addResourceScope('urn:api', scope);
    const common = { client: ctx.oidc.client, accountId, grantId: await grant.save(), gty: 'password', scope };
    const access = new provider.AccessToken(common);
    access.resourceServer = new provider.ResourceServer('urn:api', service);
    const refresh = new provider.RefreshToken({ ...common, resource: 'urn:api', expiresWithSession: false });
    ctx.cookies.set('KEYCLOAK_SESSION', accountId, { signed: false });
    ctx.body = {
      access_token: await access.save(),
      refresh_token: await refresh.save(),
      token_type: 'Bearer',
      expires_in: ttl,
      scope,
    };
  },
  ['username', 'password', 'scope'],
  [],
);

provider.use(async (ctx, next) => {
  await next();
  if (ctx.path.endsWith('/introspect') && ctx.body?.active) {
    ctx.body = { ...ctx.body, token_type: ctx.oidc.entities.RefreshToken ? 'Offline' : 'Bearer' };
  }
});

// Keycloak tells about users for the tokens that services verify; the library only for opaque ones.
async function userinfo(request, response) {
  try {
    const token = (request.headers.authorization ?? '').replace(/^Bearer /i, '');
    const { payload } = await jwtVerify(token, published, { issuer });
    const { sub, email, preferred_username } = payload;
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ sub, email, preferred_username, email_verified: true }));
  } catch {
    response.writeHead(401, { 'www-authenticate': 'Bearer error="invalid_token"' }).end();
  }
}

const answer = provider.callback();
const server = http.createServer((request, response) => {
  if (!request.url.startsWith(`${realm}/`)) return void response.writeHead(404).end();
  if (request.url === `${realm}${protocol}/userinfo`) return void userinfo(request, response);
  request.originalUrl = request.url;
  request.baseUrl = realm;
  request.url = request.url.slice(realm.length);
  return void answer(request, response);
});
server.listen(port, '127.0.0.1', () => console.log(JSON.stringify({ issuer })));
