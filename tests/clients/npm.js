// One session of npm's memcached: npm.js HOST:PORT QUEUE session|hold.
const assert = require('assert');
const { promisify } = require('util');
const Memcached = require('memcached');

const [address, queue, mode] = process.argv.slice(2);
// Open reads belong to a connection: a pool of one.
const client = new Memcached(address, { poolSize: 1, timeout: 20000, retries: 0 });
const get = promisify(client.get.bind(client));
const set = promisify(client.set.bind(client));

async function session() {
  const binary = Buffer.from([...Array(256).keys()]);
  assert.strictEqual(await get(queue), undefined);
  for (const data of ['one', 'two', binary]) assert(await set(queue, data, 0));
  assert.strictEqual(await get(`${queue}/open`), 'one');
  assert.strictEqual(await get(`${queue}/abort`), undefined);
  assert.strictEqual(await get(`${queue}/open/t=1000`), 'one');
  assert.strictEqual(await get(`${queue}/close/open`), 'two');
  assert.strictEqual(await get(`${queue}/close`), undefined);
  assert.deepStrictEqual(await get(queue), binary);
  assert.strictEqual(await get(`${queue}/t=50`), undefined);
  assert.strictEqual(await get(`${queue}_late/t=20000`), 'late');
  assert(await set(queue, { n: 1 }, 0));
  assert.deepStrictEqual(await get(queue), { n: 1 });
  const multi = promisify(client.getMulti.bind(client));
  assert(await set(queue, 'x', 0));
  assert.deepStrictEqual(await multi([queue, `${queue}_none`]), { [queue]: 'x' });
  assert(await promisify(client.del.bind(client))(queue));
  assert(await promisify(client.flush.bind(client))());
  const version = await promisify(client.version.bind(client))();
  assert(String(version[0].version).startsWith('2.'), JSON.stringify(version));
  const stats = await promisify(client.stats.bind(client))();
  assert('curr_items' in stats[0]);
}

async function hold() {
  assert.strictEqual(await get(`${queue}_held/open/t=10000`), 'held');
  await new Promise(done => setTimeout(done, 600000));
}

(mode === 'hold' ? hold() : session()).then(() => process.exit(0), error => { console.log(error); process.exit(1); });
