// What the device keeps: rankings that wait to be sent, and tasks that were taken along. A browser may forbid it: then
// they are kept as long as the page is open, and all else works.
const DATABASE = "rankloop";
const STORES = { outbox: "lease", pack: "lease" };
const inMemory = { outbox: new Map(), pack: new Map() };
let opening = null;

const open = () => (opening ??= new Promise((done, fail) => {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => { for (const [name, keyPath] of Object.entries(STORES)) request.result.createObjectStore(name, { keyPath }); };
  request.onsuccess = () => done(request.result);
  request.onerror = () => fail(request.error);
}));

// Runs `act(store)` in a transaction of its own; what it gives is there once the device has it.
async function run(name, mode, act, without) {
  let database;
  try {
    database = await open();
  } catch {
    return without(inMemory[name]);
  }
  return new Promise((done, fail) => {
    const transaction = database.transaction(name, mode, { durability: "strict" });
    const request = act(transaction.objectStore(name));
    transaction.oncomplete = () => done(request.result);
    transaction.onerror = transaction.onabort = () => fail(transaction.error);
  });
}

export const put = (name, row) => run(name, "readwrite", (store) => store.put(row), (map) => { map.set(row.lease, row); });
export const get = (name, lease) => run(name, "readonly", (store) => store.get(lease), (map) => map.get(lease));
export const all = (name) => run(name, "readonly", (store) => store.getAll(), (map) => [...map.values()]);
export const remove = (name, lease) => run(name, "readwrite", (store) => store.delete(lease), (map) => { map.delete(lease); });
